"""Messages, help and log events are plain English: none uses words or turns that this project has ruled out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from tests.support.gateway import ROOT

RULED_OUT: Final = re.compile(
    r"(?i)\b(whoever|whomever|anew|of now|of before|goes on|tells? of|told|nobody|somebody|from then on|of theirs"
    r"|makes? no sense|stands? (?:here|alone)|for want of|living (?:token|key)s?|lest|thereof|hence)\b"
)


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every text in a module that is not a docstring, with its line."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_no_message_uses_a_word_that_is_ruled_out() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted((ROOT / "proxy").rglob("*.py"))
        for line, text in texts(ast.parse(path.read_bytes()))
        if " " in text and RULED_OUT.search(text) is not None
    ]
    assert found == []
