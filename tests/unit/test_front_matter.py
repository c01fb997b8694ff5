"""The repository's public files: pictures, claims about cost, the CI workflow, pre-commit hooks and issue forms."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import fromstring

import pytest
import yaml

from bench.report import results
from bench.report.figures import Verdict

ROOT: Final = Path(__file__).resolve().parents[2]
README: Final = (ROOT / "README.md").read_text("utf-8")
MAKEFILE: Final = (ROOT / "Makefile").read_text("utf-8")
TARGETS: Final = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
WORKFLOW: Final[dict[str, Any]] = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yaml").read_text("utf-8"))
FORMS: Final = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
SVG: Final = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("picture", re.findall(r"!\[[^\]]+\]\((\S+)\)", README))
def test_a_picture_has_a_description_and_colours_for_dark_pages(picture: str) -> None:
    text = (ROOT / picture).read_text("utf-8")
    svg = fromstring(text)
    title = svg.find(f"{SVG}title")
    assert title is not None
    assert title.text
    assert svg.get("role") == "img"
    assert svg.get("aria-labelledby") == title.get("id")
    assert "prefers-color-scheme: dark" in text


def test_what_the_readme_says_of_the_cost_is_what_was_measured() -> None:
    section = README.partition("## What a request costs")[2].partition("\n## ")[0]
    ratios = {
        figure.what.rpartition(" ")[2]: figure
        for figure in results.load()["cpu"].part.figures
        if figure.what.startswith("CPU per authenticated request, ratio to ")
    }
    assert "less CPU than Envoy,\nTraefik and Caddy" in section
    assert all(ratios[name].value < 1 for name in ("envoy", "traefik", "caddy"))
    assert "more than nginx with a table of keys" in section
    assert ratios["nginx"].value > 1
    assert f"goal is at most {ratios['nginx'].bound} times" in section
    assert ("patgate misses it" in section) is (ratios["nginx"].verdict is Verdict.MISSED)


def test_the_workflow_calls_the_tasks_that_everybody_calls_on_every_python() -> None:
    (job,) = WORKFLOW["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    tasks = [command.removeprefix("make ") for command in commands if command.startswith("make ")]
    assert tasks == ["bootstrap", "check", "test"]
    assert set(tasks) <= TARGETS
    assert [command for command in commands if not command.startswith("make ")] == [
        'git config --global --add safe.directory "$GITHUB_WORKSPACE"'
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    classified = [line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert job["strategy"]["matrix"]["python"] == classified


def test_the_workflow_may_read_and_nothing_else() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_a_hook_calls_a_task_of_the_makefile() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        program, option, task = hook["entry"].split()
        assert (program, option) == ("make", "--no-print-directory")
        assert task in TARGETS


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_asks_for_something_and_each_field_once(form: Path) -> None:
    content = yaml.safe_load(form.read_text("utf-8"))
    assert content["name"]
    assert content["description"]
    fields = [element for element in content["body"] if element["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_nobody_owns_code() -> None:
    assert not [path for path in ("CODEOWNERS", ".github/CODEOWNERS", "docs/CODEOWNERS") if (ROOT / path).exists()]
