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

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
TOKEN: Final = re.compile(_TOKEN)

STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})((?: [^\r\n]*+)?)")
"""Groups: minor version, status code, reason phrase with its leading space."""

HEAD_END: Final = b"\r\n\r\n"
NAME_MEMO: Final = 4096
"""How many field names a reader remembers, at most, and how long the longest of them may be."""
NAME_MEMO_LENGTH: Final = 64
_CLEAN: Final = bytes([byte ^ (byte == 0x7F or (byte < 0x20 and byte != 0x09)) for byte in range(256)])
"""Changes every control but HTAB, and nothing else."""
_QUERY: Final = bytes([byte ^ (not 0x21 <= byte <= 0x7E or byte == 0x23) for byte in range(256)])
"""Changes everything but visible ASCII, and "#"."""


def head_lines(head: bytes) -> list[bytes] | None:
    """The lines of a head that comes without its last two CRLF; None if a CR, LF or other control is out of place."""
    lines = head.split(b"\r\n")
    text = b"".join(lines)
    return lines if text.translate(_CLEAN) == text else None


def is_query(query: bytes) -> bool:
    """Whether a query, with its "?", is visible ASCII without "#"."""
    return query.translate(_QUERY) == query


_LABEL: Final = rb"[A-Za-z0-9_~\-]{1,63}+"
_HOST: Final = re.compile(rb"(" + _LABEL + rb"(?:\." + _LABEL + rb")*+\.?|\[[0-9A-Fa-f:.]{2,45}+\])(?::[0-9]{0,5})?")
_NAME_LIMIT: Final = 255
_HOST_LIMIT: Final = _NAME_LIMIT + len(":65535")


def host_name(authority: bytes) -> str | None:
    """The name in `Host` or in the authority of an absolute-form target, in lower case; None if it is none.

    Names as the DNS has them (RFC 9110 section 7.2, RFC 1035 section 2.3.4): labels of at most 63 bytes, 255 in all, no
    escapes, no user information; or an IPv6 address in brackets.
    """
    matched = _HOST.fullmatch(authority) if len(authority) <= _HOST_LIMIT else None
    if matched is None or len(matched[1]) > _NAME_LIMIT:
        return None
    return matched[1].decode("ascii").lower()


def without_fields(lines: bytes, names: Set[bytes]) -> bytes:
    """Field lines without those whose lower-case name is one of `names`, such as `Connection` nominates."""
    return b"\r\n".join([line for line in lines.split(b"\r\n") if line.partition(b":")[0].lower() not in names])


def trimmed(value: bytes) -> bytes:
    """A field value without the white space around it (RFC 9110 section 5.5)."""
    if len(value) > 1 and value[0] == 0x20 and value[1] > 0x20 and value[-1] > 0x20:
        return value[1:]
    return value.strip(b" \t")
