"""Rules for the repository: sizes, names, imports, locks, and no traces of the machine on which it was written."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = (
    "requirements.lock",
    "requirements-dev.lock",
    "requirements-image.lock",
    "tests/backends/requirements.lock",
    "tests/clients/requirements.lock",
    "tests/fuzz/requirements.lock",
    "bench/requirements.lock",
)
OWN = {"proxy", "tests", "bench"}


def tracked() -> list[Path]:
    """Every file that git would commit: tracked, or new and not ignored. Without git, the Python files."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return [path for top in OWN for path in (ROOT / top).rglob("*.py")]
    return [
        path for name in listing.decode().split("\0") if name and ((path := ROOT / name).is_file() or path.is_symlink())
    ]


FILES = tracked()
MODULES = [path for path in FILES if path.suffix == ".py"]
OURS = [path for path in MODULES if path.is_relative_to(ROOT / "proxy")]
PACKAGES = [path for path in OURS if path.name == "__init__.py"]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_a_link() -> None:
    """A link says where files are on one machine, and a clean checkout follows it to nowhere."""
    assert [named(path) for path in FILES if path.is_symlink()] == []


def text_files() -> Iterator[tuple[Path, str]]:
    for path in FILES:
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def imports(path: Path) -> set[str]:
    """The top-level names of all imports of a module, also those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_no_module_is_longer_than_500_lines() -> None:
    long = {named(path): count for path in MODULES if (count := len(path.read_text().splitlines())) > 500}
    assert not long


def test_no_module_has_a_name_without_meaning() -> None:
    vague = [named(path) for path in OURS if {"utils", "util", "helpers", "common", "misc"} & {path.stem, *path.parts}]
    assert not vague


def test_no_room_has_more_than_fifteen_modules_except_the_lists_of_nouns() -> None:
    """Excepted are the commands of the CLI and the operations of the API, which have one module for each noun."""
    nouns = {"proxy/cli/commands", "proxy/control/api"}
    sizes = Counter(named(path.parent) for path in OURS if path.name != "__init__.py")
    assert {room: size for room, size in sizes.items() if size > 15 and room not in nouns} == {}


def test_every_public_class_has_a_unique_name() -> None:
    """API models are not included: their names are those of the OpenAPI document."""
    owners: dict[str, list[str]] = {}
    for path in OURS:
        control = ROOT / "proxy" / "control"
        if not path.is_relative_to(control / "api") and path != control / "models.py":
            for node in ast.parse(path.read_bytes()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    owners.setdefault(node.name, []).append(named(path))
    assert {name: modules for name, modules in owners.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("package", PACKAGES, ids=named)
def test_every_package_has_a_docstring_of_at_most_25_lines(package: Path) -> None:
    docstring = ast.get_docstring(ast.parse(package.read_bytes()))
    assert docstring
    assert len(docstring.splitlines()) <= 25


def test_every_task_is_named_and_kept() -> None:
    """RUF006 finds tasks without a reference; this test finds tasks without a name."""
    bare = [
        f"{named(path)}:{node.lineno}"
        for path in OURS
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "create_task"
        and not any(keyword.arg == "name" for keyword in node.keywords)
    ]
    assert not bare


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    pattern = re.compile(r"\b(?:mark\.(?:skip|skipif|xfail)|pytest\.(?:skip|xfail|importorskip))\b")
    here = Path(__file__).resolve()
    found = [named(path) for path in MODULES if path != here and pattern.search(path.read_text())]
    assert not found


def test_nothing_names_a_path_of_the_machine_it_was_written_on() -> None:
    machine = re.compile(r"(?<![\w.}/])/(?:root/[\w.]|home/\w|Users/\w|work/(?:main|shared)|opt/(?:pypi|wheels))")
    found = {named(path): match[0] for path, text in text_files() if (match := machine.search(text))}
    assert not found


def test_every_document_that_is_named_is_in_the_tree() -> None:
    """The explanations of the code are in this repository: no comment or page refers to documents outside it."""
    documents = {path.name for path in FILES if path.suffix == ".md"}
    missing = {
        f"{named(path)}: {name}"
        for path, text in text_files()
        for name in re.findall(r"(?<![*\w.-])\w[\w.-]*\.md\b", text)
        if name not in documents
    }
    assert not missing


def test_nothing_names_a_package_index() -> None:
    """The installing machine chooses the package index, not the project."""
    index = re.compile(
        r"(?:https?|file)://(?!127\.0\.0\.1|localhost)[^\s/\"']*(?:pypi|pythonhosted|mirror)[^\s/\"']*/(?:simple|packages)"
    )
    found = {named(path): match[0] for path, text in text_files() if (match := index.search(text))}
    assert not found


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_pin_every_package_by_hash_and_hold_nothing_else(lock: str) -> None:
    lines = (ROOT / lock).read_text().replace("\\\n", " ").splitlines()
    for line in filter(None, map(str.strip, lines)):
        if line.startswith("#"):
            assert "/" not in line, f"{lock}: a comment may not name a path or host: {line}"
            continue
        requirement, *hashes = line.split()
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[0-9][\w.+!]*", requirement), f"{lock}: not a pinned package: {line}"
        assert hashes, f"{lock}: no hash for {requirement}"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", value) for value in hashes), f"{lock}: {requirement}"


def test_the_development_lock_contains_the_runtime_lock() -> None:
    def pins(lock: str) -> set[str]:
        return set(re.findall(r"^[a-z0-9].*==\S+", (ROOT / lock).read_text(), re.MULTILINE))

    assert pins("requirements.lock") <= pins("requirements-dev.lock")
    assert pins("requirements.lock") < pins("requirements-image.lock") <= pins("requirements-dev.lock")


def test_every_imported_library_is_in_the_import_rules() -> None:
    """A library in no import contract could be imported anywhere, so every new library needs a contract."""
    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter")
    places = [section for name, section in rules.items() if name != "importlinter:contract:core"]
    placed = {name for section in places for name in section.get("forbidden_modules", "").split()}
    foreign = {name for path in OURS for name in imports(path)} - set(sys.stdlib_module_names) - OWN
    assert foreign <= placed


def test_every_dependency_is_imported_and_every_library_that_is_imported_is_one() -> None:
    """A library that only tests import is a development dependency, and an extra that no code imports is useless."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for extra, names in project["optional-dependencies"].items() if extra != "dev" for name in names]
    declared = {_distribution(requirement) for requirement in [*project["dependencies"], *extras]}
    foreign = {name for path in OURS for name in imports(path)} - set(sys.stdlib_module_names) - OWN
    providers = packages_distributions()
    imported = {_distribution(provider) for name in foreign for provider in providers[name]}
    assert declared == imported - {"pydantic-core"}, "pydantic pins pydantic-core"


def _distribution(requirement: str) -> str:
    """The normalised name of a distribution, without extras and versions."""
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_core_imports_nothing_but_itself_and_the_standard_library() -> None:
    core = [path for path in OURS if path.is_relative_to(ROOT / "proxy" / "core")]
    assert {name for path in core for name in imports(path)} <= {*sys.stdlib_module_names, "proxy"}


def test_the_distribution_and_command_are_patgate_and_the_package_is_proxy() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "patgate"
    assert project["scripts"] == {"patgate": "proxy.__main__:main"}
    assert project["requires-python"] == ">=3.11"


def test_ci_runs_only_make_check_and_make_test() -> None:
    commands = [
        line.removeprefix("make --no-print-directory ")
        for line in (ROOT / ".ci" / "run").read_text().splitlines()
        if line and not line.startswith(("#", "set ", "cd "))
    ]
    assert commands == ["check", "test"]


@pytest.mark.parametrize(("ci", "outcome"), [("true", "1 failed"), ("", "1 skipped")])
@pytest.mark.parametrize("place", ["body", "module"])
def test_a_skipped_test_fails_the_run_in_ci_and_only_there(tmp_path: Path, ci: str, outcome: str, place: str) -> None:
    # Writes a test and runs it.
    skip = "pytest.skip('no such tool', allow_module_level=True)"
    body = f"def test_one():\n    {skip}\n" if place == "body" else f"{skip}\n"
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(f"import pytest\n{body}")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
    )
    expected = outcome if place == "body" else outcome.replace("failed", "error")
    assert expected in run.stdout.splitlines()[-1]
    assert not ci or run.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _tasks(function: ast.AST) -> Iterator[ast.expr | None]:
    """The target to which a function assigns each task that it starts outside a task group."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("asyncio.create_task", ").create_task")):
            assigned = [
                each.targets for each in ast.walk(function) if isinstance(each, ast.Assign) and each.value is node
            ]
            yield from (target[-1] for target in assigned) if assigned else (None,)


#: Callbacks that retrieve a task's exception.
LOOK_AT_FAILURES = ("defects.noted", "self._ended", "_retrieved", "retrieved", "self._forget(key)")


def test_no_module_waits_in_a_way_that_overlooks_a_cancellation() -> None:
    """``asyncio.wait_for`` of Python 3.11 loses a cancellation at the end of the wait; ``asyncio.timeout`` does not."""
    users = [
        named(path) for path in MODULES if named(path).startswith("proxy") and "asyncio.wait_for" in path.read_text()
    ]
    assert users == []


def test_every_task_is_awaited_where_it_is_started_or_reports_its_failure() -> None:
    """Otherwise only the garbage collector reports a failed task, if at all."""
    left_alone = []
    for path in OURS:
        for function in _functions(path):
            text = ast.unparse(function)
            awaited = " ".join(ast.unparse(node) for node in ast.walk(function) if isinstance(node, ast.Await))
            for target in _tasks(function):
                name = "?" if target is None else ast.unparse(target)
                looked_at = [f"{name}.add_done_callback({callback})" in text for callback in LOOK_AT_FAILURES]
                if not any(looked_at) and not re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", awaited):
                    left_alone.append(f"{named(path)}: {function.name}: {name}")
    assert not left_alone
