"""The redactor finds a token in any context, encoding and letter case."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.observe import logs

ID = "0123456789ab"
SECRET = "S" * 32 + "CRC123"
TOKEN = f"acme_pat_{ID}_{SECRET}"
ESCAPED = "".join(f"%{ord(letter):02X}" for letter in TOKEN)


@pytest.mark.parametrize(
    "text",
    [
        f"/open/a?token%3D{TOKEN}",
        f"/open/a?q=Bearer%20{TOKEN}",
        f"/open/%2F{TOKEN}",
        f"/open/%61{TOKEN[1:]}",
        f"/open/X{TOKEN}",
        f"/open/0{TOKEN}9",
        f"/open/_{TOKEN}_",
        f"/open/{TOKEN.replace('_', '%5F')}",
        f"/open/{TOKEN.replace('_', '%5f')}?x=%zz&y=%",
        f"/open/{TOKEN.replace('_pat', '%5Fpat')}",
        f"/open/{TOKEN.replace('S', '%53')}",
        f"/open/{TOKEN.replace('S', '%53', 1)}",
        f"/open/{ESCAPED}",
        f"/open/%E2%28{ESCAPED}%FF",
        # A doubly escaped target is refused, but its request is still logged.
        f"/open/{TOKEN.replace('_', '%255F')}",
        f"/open/{quote(ESCAPED)}",
        f"/open/a?u={quote(f'https://x.example/?t={TOKEN}', safe='')}&v={TOKEN.replace('_', '%5F')}",
    ],
)
def test_a_token_in_any_context_is_cut_to_its_public_prefix(text: str) -> None:
    redacted = logs.redact(text)
    for tail in (SECRET, SECRET.replace("S", "%53"), "S" * 8, "%53" * 8, "%2553" * 8):
        assert tail not in redacted
    assert f"_pat_{ID}" in redacted or redacted.endswith("Bearer [redacted]")


@pytest.mark.parametrize("change", [str.upper, str.lower, str.swapcase, str.title], ids=lambda change: change.__name__)
@pytest.mark.parametrize("around", ["/open/{}", "/open/X{}", "name {} and more", "{}{}"])
def test_a_token_in_another_letter_case_is_cut_to_its_public_prefix(change: Any, around: str) -> None:
    """A secret in the wrong case leaves few variants to try, and the checksum shows which is correct."""
    written = change(TOKEN)
    for text in (around.format(written, written), around.format(written.replace("_", "%5F"), written)):
        redacted = logs.redact(text)
        assert "s" * 8 not in redacted.lower()
        assert change(f"_pat_{ID}").lower() in redacted.lower()


@given(st.text(max_size=20), st.text(max_size=20), st.sets(st.integers(0, len(TOKEN) - 1)), st.integers(0, 2))
def test_no_combination_of_escapes_hides_a_secret(before: str, after: str, escaped: set[int], again: int) -> None:
    written = "".join(f"%{ord(letter):02x}" if at in escaped else letter for at, letter in enumerate(TOKEN))
    for _ in range(again):
        written = quote(written)
    assert "S" * 16 not in logs.redact(f"{before} {written} {after}")


@pytest.mark.parametrize("text", ["/a%20b?c=%2F", "100%", "%zz", "/caf%C3%A9", "%2F" * 40])
def test_text_without_a_token_is_unchanged(text: str) -> None:
    assert logs.redact(text) == text
