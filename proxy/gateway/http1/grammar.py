"""The grammar of HTTP/1.1 message heads (RFC 9110 section 5, RFC 9112 sections 2 to 5).

Rules of this module:
1. A head is accepted whole or not at all; there is no leniency switch and no repair.
2. CR and LF occur only as the CRLF that ends a line, and no other control character but HTAB occurs at all: one
   translation checks this for all lines, before any of them is parsed.
3. A field name is a token, directly followed by its colon; a parser checks this once for each name that it remembers.
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
"""Most field names that a parser remembers."""
NAME_MEMO_LENGTH: Final = 64
"""Longest field name that a parser remembers, in bytes."""
_CLEAN: Final = bytes([byte ^ (byte == 0x7F or (byte < 0x20 and byte not in b"\t\r\n")) for byte in range(256)])
"""Changes every control character but HTAB, CR and LF, and nothing else."""


def head_lines(head: bytes) -> list[bytes] | None:
    """The lines of a head without its last two CRLF; None if a CR, LF or other control character is out of place."""
    if not head or (head[-1] < 0x20 and head[-1] != 0x09) or head.translate(_CLEAN) != head:
        return None
    lines = head.splitlines()
    # ``splitlines`` also splits at a lone CR or LF. The head is then shorter than its lines joined by CRLF.
    length = 2 * len(lines) - 2
    for line in lines:
        length += len(line)
    return lines if length == len(head) else None


def without_fields(lines: bytes, names: Set[bytes]) -> bytes:
    """Field lines without those whose lower-case name is in ``names``, such as the fields that ``Connection`` lists."""
    return b"\r\n".join([line for line in lines.split(b"\r\n") if line.partition(b":")[0].lower() not in names])


def trimmed(value: bytes) -> bytes:
    """A field value without surrounding white space (RFC 9110 section 5.5)."""
    if len(value) > 1 and value[0] == 0x20 and value[1] > 0x20 and value[-1] > 0x20:
        return value[1:]
    return value.strip(b" \t")
