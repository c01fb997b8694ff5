"""Splitting a head into lines, for every possible short head."""

from __future__ import annotations

import itertools
import re

import pytest

from proxy.gateway.http1.grammar import head_lines

#: Lines of anything but control characters and with HTAB, between them CRLF and nothing else.
HEAD = re.compile(rb"[^\0-\x08\x0a-\x1f\x7f]+(?:\r\n[^\0-\x08\x0a-\x1f\x7f]+)*")


@pytest.mark.parametrize("length", range(1, 8))
def test_a_head_consists_of_lines_separated_by_crlf_without_control_characters(length: int) -> None:
    """Heads with an empty line in them are left out: an empty line ends a head."""
    taken = 0
    for made in itertools.product(b"a\r\n\t", repeat=length):
        head = bytes(made)
        if b"\r\n\r\n" in head + b"\r\n" or head.startswith(b"\r\n"):
            continue
        lines = head_lines(head)
        assert (lines is not None) == (HEAD.fullmatch(head) is not None), head
        assert lines is None or lines == head.split(b"\r\n"), head
        taken += lines is not None
    assert taken >= 2**length


@pytest.mark.parametrize("byte", [*range(0x20), 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("place", ["%ba: 1\r\nb: 2", "a: 1%b\r\nb: 2", "a: 1\r\nb%b: 2", "a: 1\r\nb: 2%b"])
def test_a_control_character_is_refused_at_any_place(byte: int, place: str) -> None:
    head = place.encode() % bytes((byte,))
    assert (head_lines(head) is None) == ((byte < 0x20 and byte != 0x09) or byte == 0x7F)


def test_an_empty_head_is_refused() -> None:
    assert head_lines(b"") is None
