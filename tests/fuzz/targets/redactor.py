"""Fuzz target: the log's redactor removes the secret of every token in a text, escaped or not.

Every NUL of an input is replaced by a token, every 0x01 by the same token with escaped underscores, and every 0x02 by
the same token fully escaped.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from proxy.observe.logs import redact
from tests.fuzz.targets.target import Target

SECRET: Final = "QwErTyUiOpAsDfGhJkLzXcVbNm012345"
TOKEN: Final = f"acme_pat_0123456789Ab_{SECRET}000000"
ESCAPED: Final = "".join(f"%{ord(character):02x}" for character in TOKEN)


def run(data: bytes) -> None:
    text = data.decode("latin-1")
    text = text.replace("\0", TOKEN).replace("\1", TOKEN.replace("_", "%5F")).replace("\2", ESCAPED)
    shown = redact(text)
    for _ in range(3):
        assert SECRET not in shown, shown
        shown = unquote(shown)


TARGET: Final = Target(
    name="redactor",
    run=run,
    seeds=(
        b"/v1/things/\0/x",
        b"/v1/things?token=\1&a=b",
        b"Authorization: Bearer \0",
        b"cookie=a\0; x-api-key: \1",
        b"acme_pat_0123456789Ab_\0",
        b"https://user:\0@host/%5F%255Fpat%2500\0",
        b"/\2/a%2\2%",
        b"acme_pat_01234567\0",
        b"$argon2id$v=19$m=65536,t=3,p=4$\0",
    ),
    pieces=(
        b"\0", b"\1", b"\2", b"%", b"%25", b"%5F", b"%255F", b"_pat_", b"_key_", b"0123456789Ab", b"_", b"Basic ",
        b"Bearer ", b"authorization", b": ", b"=", b'"', b"'", b"://", b"@", b"$argon2id$", b"%41", b"%C3%A9", b"\xff",
    ),
    longest=300,
)  # fmt: skip
