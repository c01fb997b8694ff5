"""Checks of an incomplete head: whether the part that has arrived can still become a valid one.

Rules of this module:
1. The verdict depends on the bytes in their order and not on their segments: the first byte with which a head can no
   longer be valid decides. Everything that only a complete head shows is left to its parser.
2. Nothing here runs for a head that arrives in one piece, as nearly all do.
3. Only new bytes are searched: a head that arrives byte by byte must cost no more than its length.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.core.reasons import Reason
from proxy.gateway.http1.grammar import HEAD_END, STATUS_LINE

_BARE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)[^\n]|\0")
"""LF or CR that is not part of a CRLF, and NUL."""
_CONTROL: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)[^\n]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""The same, or another control character but HTAB."""
_NO_FIELD: Final = re.compile(rb"\r\n(?![!#$%&'*+\-.^_`|~0-9A-Za-z]++:)[^\r\n]++\r")
"""A complete line that does not begin with the name of a field."""
_BEGINNINGS: Final = (b"HTTP/1.1 ", b"HTTP/1.0 ")


def request_refusal(data: bytes, since: int, *, max_line: int, max_head: int) -> Reason | None:
    """Why ``data``, the beginning of a request, can no longer become a valid head; None if it can.

    ``max_line`` is the limit of the request line without its CRLF, ``max_head`` that of the head with its empty line,
    in bytes. Bytes before ``since`` have been searched.
    """
    bare = _BARE.search(data, since)
    first = len(data) if bare is None else bare.start()
    end = data.find(b"\r\n")
    # A CR at the very end may be half of the line's CRLF.
    line = len(data) - data.endswith(b"\r") if end < 0 else end
    if line > max_line and first >= max_line:
        return Reason.TARGET_TOO_LONG
    if len(data) > max_head and data.find(HEAD_END, 0, max_head) < 0 and first >= max_head:
        return Reason.HEAD_TOO_LARGE
    return None if bare is None else Reason.REQUEST_MALFORMED


def answer_possible(data: bytes, since: int) -> bool:
    """Whether ``data`` can be the beginning of an answer's head; bytes before ``since`` have been searched."""
    if not data.startswith(_BEGINNINGS) and not any(each.startswith(data) for each in _BEGINNINGS):
        return False
    if _CONTROL.search(data, max(0, since - 2)) is not None:
        return False
    end = data.find(b"\r\n")
    if end < 0:
        return True
    if since <= end + 1 and STATUS_LINE.fullmatch(data, 0, end) is None:
        return False
    return _NO_FIELD.search(data, max(0, data.rfind(b"\r\n", 0, since))) is None
