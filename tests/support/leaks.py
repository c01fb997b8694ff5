"""What no file of a gateway and no request to a backend may have in it: the secret of a token that a test was given.

A secret counts as leaked in whole, by its first 32 characters, and inside the Basic credentials that git and pip make.
"""

from __future__ import annotations

import base64
import re
import string
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Every token value that a test in this process was given.
SECRETS: set[str] = set()

#: Every directory that a gateway under test wrote to.
DIRECTORIES: set[Path] = set()

#: What the backends' own look at what they were sent has found; the plugin fails the run for it.
SENT: list[str] = []

_USERS = ("git", "__token__", "admin")
_HEAD_BYTES, _BASIC_BYTES = 32, 20


def _all_but(alphabet: bytes) -> bytes:
    """The table that makes a space of every byte outside an alphabet."""
    return bytes(byte if byte in alphabet else 0x20 for byte in range(256))


_OF_HEADS = _all_but((string.digits + string.ascii_letters).encode())
_OF_BASICS = _all_but((string.digits + string.ascii_letters + "+/").encode())


def secret_part(token: str) -> str:
    """What must never be seen outside: the 38 characters behind the public prefix."""
    found = re.fullmatch(r"[a-z0-9]+_[a-z]+_[0-9A-Za-z]{12}_([0-9A-Za-z]{38})", token)
    assert found, "a token of an unexpected form"
    return found[1]


def leaks(content: bytes, tokens: Iterable[str], *, any_case: bool = False) -> bool:
    """Whether a secret is in there, in any spelling; with ``any_case``, whatever the case of its letters.

    Its time grows with the content, not with the tokens.
    """
    values = list(tokens)
    heads = {secret_part(value)[:_HEAD_BYTES].encode() for value in values}
    if any_case and not {head.lower() for head in heads}.isdisjoint(_pieces(content.lower(), _OF_HEADS, _HEAD_BYTES)):
        return True
    credentials = [base64.b64encode(f"{user}:{value}".encode()) for value in values for user in _USERS]
    basics = {coded[-_BASIC_BYTES - 4 : -4] for coded in credentials}
    return not (
        heads.isdisjoint(_pieces(content, _OF_HEADS, _HEAD_BYTES))
        and basics.isdisjoint(_pieces(content, _OF_BASICS, _BASIC_BYTES))
    )


def _pieces(content: bytes, table: bytes, length: int) -> Iterator[bytes]:
    """Every piece of so many bytes that one of the alphabet's words has."""
    for word in content.translate(table).split():
        for at in range(len(word) - length + 1):
            yield word[at : at + length]


def files_with_secrets() -> list[str]:
    """The names of the files in ``DIRECTORIES`` that have one."""
    files = [file for directory in DIRECTORIES for file in directory.rglob("*") if file.is_file()]
    return sorted(file.name for file in files if leaks(file.read_bytes(), SECRETS, any_case=True))
