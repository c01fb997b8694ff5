"""The grammar of HTTP/1.1 heads (RFC 9110 section 5, RFC 9112 sections 2 to 5).

Rules of this module:
1. A head is taken whole or not at all; there is no leniency switch and no repair.
2. CR and LF occur only as the CRLF that ends a line, and no other control character but HTAB occurs at all: one
   translation says so for all lines, before any of them is looked at.
3. A field name is a token; who meets a name for the first time checks that, with nothing between it and its colon.
4. Every repetition is possessive or separated by a byte it cannot contain, so matching is linear in the input.
"""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Final

STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})((?: [^\r\n]*+)?)")
"""Groups: minor version, status code, reason phrase with its leading space."""

HEAD_END: Final = b"\r\n\r\n"
NAME_MEMO: Final = 4096
"""How many field names a reader remembers, at most, and how long the longest of them may be."""
NAME_MEMO_LENGTH: Final = 64
_CLEAN: Final = bytes([byte ^ (byte == 0x7F or (byte < 0x20 and byte not in b"\t\r\n")) for byte in range(256)])
"""Changes every control but HTAB, CR and LF, and nothing else."""


def head_lines(head: bytes) -> list[bytes] | None:
    """The lines of a head that comes without its last two CRLF; None if a CR, LF or other control is out of place."""
    if not head or (head[-1] < 0x20 and head[-1] != 0x09) or head.translate(_CLEAN) != head:
        return None
    lines = head.splitlines()
    # ``splitlines`` also splits at a lone CR or LF. The head is then shorter than its lines joined by CRLF.
    length = 2 * len(lines) - 2
    for line in lines:
        length += len(line)
    return lines if length == len(head) else None


def without_fields(lines: bytes, names: Set[bytes]) -> bytes:
    """Field lines without those whose lower-case name is one of ``names``, such as ``Connection`` nominates."""
    return b"\r\n".join([line for line in lines.split(b"\r\n") if line.partition(b":")[0].lower() not in names])


def trimmed(value: bytes) -> bytes:
    """A field value without the white space around it (RFC 9110 section 5.5)."""
    if len(value) > 1 and value[0] == 0x20 and value[1] > 0x20 and value[-1] > 0x20:
        return value[1:]
    return value.strip(b" \t")
