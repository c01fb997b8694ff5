"""Every recipe is run as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.clients.pages import PAGES, Page

NAMES = sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "index")


def test_f9_every_recipe_has_a_module_of_its_name() -> None:
    here = Path(__file__)
    assert {f"test_{name}.py" for name in NAMES} == {path.name for path in here.parent.glob("test_*.py")} - {here.name}


@pytest.mark.parametrize("name", NAMES)
def test_every_block_of_commands_and_of_output_is_used_by_the_module(name: str) -> None:
    page = Page(name)
    module = (Path(__file__).parent / f"test_{name}.py").read_text("utf-8")
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.text, flags=re.M | re.S), re.M)
    for heading in headings[1:]:
        languages = re.findall(r"^```(\w+)$", page.section(heading), re.MULTILINE)
        uses = set(re.findall(rf'\.(\w+)\(\s*"{re.escape(heading)}"', module))
        typed = {"commands", "types", "starts", "succeeds", "refuses"} & uses
        assert bool(typed) is ("console" in languages), heading
        assert bool({"shows", "refuses"} & uses) is ("text" in languages), heading
        files = set(languages) - {"console", "text"}
        assert bool("block" in uses or heading == "Configuration") is bool(files), heading
