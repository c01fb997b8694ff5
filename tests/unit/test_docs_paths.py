"""Paths in pages and docstrings: every named module exists, and the map of the code lists every package directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = sorted(
    [
        *ROOT.glob("docs/**/*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    ]
)
ARCHITECTURE: Final = (ROOT / "docs" / "architecture.md").read_text("utf-8")
ROOMS: Final = {path.name for path in (ROOT / "proxy").iterdir() if path.is_dir()}
TOP: Final = {"proxy", "tests", "bench", "config", "docs"}

#: Files of the reader, in the examples of a page.
OF_EXAMPLES: Final = {"src/settings.py", "store.py", "yaml.py"}


def in_backticks(text: str) -> list[str]:
    """The texts in backticks outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def paths(text: str) -> set[str]:
    """The paths of the project's modules and directories that the text has in backticks."""
    words = {word.partition("::")[0] for quoted in in_backticks(text) for word in quoted.split()}
    modules = {word for word in words if re.fullmatch(r"(?:[\w.-]+/)*\w+\.py", word)}
    below = {
        word for word in words if re.fullmatch(r"(?:[\w.-]+/)+[\w.-]*", word) and word.split("/")[0] in TOP | ROOMS
    }
    return (modules | below) - OF_EXAMPLES


def exists(path: str, beside: list[Path]) -> bool:
    """Whether a path exists below the root or the package; a bare name may be in a directory of the same paragraph."""
    places = [ROOT, ROOT / "proxy", *(beside if "/" not in path else [])]
    return any((place / path).exists() for place in places)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_path_of_the_project_that_a_page_names_exists(page: Path) -> None:
    missing = set()
    for paragraph in re.split(r"\n\n|^(?=\| )", page.read_text("utf-8"), flags=re.MULTILINE):
        named = paths(paragraph)
        beside = [ROOT / path for path in named if path.endswith("/")]
        missing |= {path for path in named if not exists(path, beside)}
    assert missing == set()


def test_the_map_of_the_code_has_every_room_of_the_package() -> None:
    rooms = {path.parent.relative_to(ROOT).as_posix() + "/" for path in (ROOT / "proxy").rglob("__init__.py")}
    assert rooms - {"proxy/"} - paths(ARCHITECTURE) == set()


def test_every_module_at_the_top_of_the_package_is_on_the_map() -> None:
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "proxy").glob("[!_]*.py")}
    assert modules - paths(ARCHITECTURE) == set()


def module_and_rest(name: str) -> tuple[Path, list[str]] | None:
    """The file of the longest beginning of a dotted name that is a module or subpackage, and the rest of the name."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        place = (ROOT / "proxy").joinpath(*parts[:count])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file, parts[count:]
    return None


def names_something(name: str) -> bool:
    """Whether a dotted name is a module or subpackage, or the text of its module has the word that follows."""
    found = module_and_rest(name)
    return found is not None and all(re.search(rf"\b{word}\b", found[0].read_text("utf-8")) for word in found[1][:1])


def test_every_module_that_a_docstring_or_comment_names_exists() -> None:
    """Names in double backticks, with or without ``proxy.``; the last name after ``settings`` may be a field."""
    dotted = re.compile(rf"``(?:proxy\.)?((?:{'|'.join(sorted(ROOMS))})(?:\.\w+)+)")
    fields = (ROOT / "proxy" / "settings" / "model.py").read_text("utf-8")
    missing = {
        f"{path.relative_to(ROOT).as_posix()}: {name}"
        for path in [*ROOT.glob("proxy/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("bench/**/*.py")]
        for name in dotted.findall(path.read_text("utf-8"))
        if not names_something(name)
        and not (name.startswith("settings.") and re.search(rf"\b{name.split('.')[1]}\b", fields))
    }
    assert missing == set()
