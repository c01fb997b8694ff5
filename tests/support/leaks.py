"""Finds leaked secrets of tokens, which no file of a gateway and no request to a backend may contain.

A secret counts as leaked as a whole, by its first 32 characters, and inside the Basic credentials that git and pip
make.
"""

from __future__ import annotations

import base64
import re
import string
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.support.process import contents

#: Every token value that a test in this process received.
SECRETS: set[str] = set()

#: Every directory that a gateway under test wrote to.
DIRECTORIES: set[Path] = set()

#: Leaks that the backends found in what they received; the plugin fails the run for them.
SENT: list[str] = []

_USERS = ("git", "__token__", "admin")
_HEAD_BYTES, _BASIC_BYTES = 32, 20


def _all_but(alphabet: bytes) -> bytes:
    """The translation table that replaces every byte outside an alphabet by a space."""
    return bytes(byte if byte in alphabet else 0x20 for byte in range(256))


_OF_HEADS = _all_but((string.digits + string.ascii_letters).encode())
_OF_BASICS = _all_but((string.digits + string.ascii_letters + "+/").encode())


def secret_part(token: str) -> str:
    """The part that must never appear outside: the 38 characters after the public prefix."""
    found = re.fullmatch(r"[a-z0-9]+_[a-z]+_[0-9A-Za-z]{12}_([0-9A-Za-z]{38})", token)
    assert found, "a token of an unexpected form"
    return found[1]


def leaks(content: bytes, tokens: Iterable[str], *, any_case: bool = False) -> bool:
    """Whether the content contains a secret, in any spelling; with ``any_case``, in any letter case.

    Its time grows with the content, not with the number of tokens.
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
    """Yield every piece of the given length from each run of bytes in the alphabet."""
    for word in content.translate(table).split():
        for at in range(len(word) - length + 1):
            yield word[at : at + length]


def files_with_secrets() -> list[str]:
    """The names of the files in ``DIRECTORIES`` that contain a secret."""
    return sorted(
        file.name
        for directory in DIRECTORIES
        for file, content in contents(directory)
        if leaks(content, SECRETS, any_case=True)
    )
