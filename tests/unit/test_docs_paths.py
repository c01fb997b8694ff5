"""Paths in the documentation: every module that a page names exists, and the map of the code has every room."""

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

#: Files of the reader, of the examples on a page.
OF_EXAMPLES: Final = {"src/settings.py", "yaml.py"}


def in_backticks(text: str) -> list[str]:
    """What is in backticks outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def paths(text: str) -> set[str]:
    """Every path of a module or directory of the project that a text has in backticks."""
    words = {word.partition("::")[0] for quoted in in_backticks(text) for word in quoted.split()}
    modules = {word for word in words if re.fullmatch(r"(?:[\w.-]+/)*\w+\.py", word)}
    below = {
        word for word in words if re.fullmatch(r"(?:[\w.-]+/)+[\w.-]*", word) and word.split("/")[0] in TOP | ROOMS
    }
    return (modules | below) - OF_EXAMPLES


def exists(path: str, beside: list[Path]) -> bool:
    """Whether a path is below the root or the package, or a bare name is in a directory of the same paragraph."""
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
