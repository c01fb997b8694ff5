r"""The request target: the canonical form of its path, or a refusal (docs/threat-model.md §1).

Routes match the canonical form, but the backend gets the client's own bytes. So a path is accepted only if every
reasonable backend reads it in the same way:

1. A path starts with ``/`` and holds RFC 3986 path characters, ``[ ] | ^`` (which browsers do not escape) and ``%XX``.
   All else is refused: ``\``, ``#``, space, control bytes, bytes from 0x80, ``%`` without two hex digits.
2. Escapes decode to UTF-8 (RFC 3629: no overlong form, no surrogate) without control characters (C0, DEL, C1) and
   without ``\``. The canonical form is the decoded text; only an encoded slash stays escaped, as ``%2F``.
3. The decoded text contains no further escape (``%252e``, ``%25%32%65``, ``%25u002e``): decoding it again must change
   nothing.
4. No segment is ``.`` or ``..``, with dots plain or escaped, bounded by ``/``, ``%2F`` or ``;``, with or without white
   space around the dots. Such a path is refused, never resolved.
5. ``%2F`` needs ENCODED_SLASH and never separates two segments; ``;`` and ``%3B`` need SEMICOLON; an empty segment
   (``//``, one made by ``%2F``, or one with only ``;parameters``) needs EMPTY_SEGMENT. One trailing slash makes no
   empty segment: ``/a/`` is not ``/a``.
6. The result lists what a path needs; the matching route says what it allows, by default nothing.
7. The query is not part of matching; it is visible ASCII without ``#``.
8. No function here raises.
"""

from __future__ import annotations

import re
from enum import IntFlag
from typing import Final


class PathAllowance(IntFlag):
    """Ambiguous path forms that a route may allow, because its backend is known to read them as patgate does."""

    NONE = 0
    ENCODED_SLASH = 1
    SEMICOLON = 2
    EMPTY_SEGMENT = 4


_CHARS: Final = rb"A-Za-z0-9_~!$&'()*+,=:@\[\]|^-"

# A translation that changes every byte which needs a closer look. A path that it leaves unchanged, and that has no
# segment that is empty or begins with a dot, is canonical and needs nothing; all others take the slow way.
_NOTHING_SPECIAL: Final = re.compile(rb"[./" + _CHARS + rb"]")
_PLAIN: Final = bytes([byte ^ (_NOTHING_SPECIAL.match(bytes((byte,))) is None) for byte in range(256)])
_WELL_FORMED: Final = re.compile(rb"/(?:[./;" + _CHARS + rb"]|%[0-9A-Fa-f]{2})*+")
_REFUSED_ESCAPE: Final = re.compile(rb"%(?:[01][0-9A-Fa-f]|5[Cc]|7[Ff])")
_ESCAPE: Final = re.compile(rb"%..", re.DOTALL)
_STILL_ENCODED: Final = re.compile(r"%(?:[0-9A-Fa-f]{2}|[uU][0-9A-Fa-f]{4})", re.ASCII)
_C1: Final = re.compile("[\u0080-\u009f]")
_DOTS: Final = frozenset((".", ".."))

# Marks the encoded slashes until the segments are checked; rule 2 keeps this byte out of every decoded path.
_SLASH_MARK: Final = "\0"

_DECODED: Final = {
    f"%{high}{low}".encode(): bytes((value,)) if value != 0x2F else _SLASH_MARK.encode()
    for value in range(256)
    for high in {f"{value >> 4:X}", f"{value >> 4:x}"}
    for low in {f"{value & 15:X}", f"{value & 15:x}"}
}

_QUERY: Final = re.compile(rb'[!"$-~]*+').fullmatch
_ABSOLUTE: Final = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([A-Za-z0-9._~!$&'()*+,=:\[\]-]++)(/.*)", re.DOTALL)


def canonical_path(path: bytes) -> tuple[str, int] | None:
    """The canonical form of an origin-form path (no query) and the ``PathAllowance`` bits it needs; None refuses it."""
    if path and path[0] == 0x2F and path.translate(_PLAIN) == path:
        text = path.decode()
        if "//" not in text and "/." not in text:
            return text, 0
    return _examine(path)


def _examine(path: bytes) -> tuple[str, int] | None:
    if _WELL_FORMED.fullmatch(path) is None or _REFUSED_ESCAPE.search(path) is not None:
        return None
    try:
        text = _ESCAPE.sub(lambda found: _DECODED[found[0]], path).decode("utf-8")
    except UnicodeDecodeError:
        return None
    if _STILL_ENCODED.search(text) is not None or _C1.search(text) is not None:
        return None
    needed = 0
    if _SLASH_MARK in text:
        needed |= 1
    if ";" in text:
        needed |= 2
    flat = text.replace(_SLASH_MARK, "/")
    if "//" in flat or "/;" in flat:
        needed |= 4
    if "." in flat and any(part.strip() in _DOTS for segment in flat.split("/") for part in segment.split(";")):
        return None
    return text.replace(_SLASH_MARK, "%2F"), needed


def split_target(raw: bytes) -> tuple[bytes | None, bytes, bytes] | None:
    r"""Split an origin-form or http(s) absolute-form target into authority (or None), path, query (``?…`` or b"").

    None refuses: authority-form, ``*`` (which the caller handles first), other schemes, user information, an
    absolute-form without a path, a query that is not visible ASCII. The path must still pass ``canonical_path``.
    Source: RFC 9112 §3.2. The query may contain ``[ ] { } | \ ^ ` " < >``, because clients send them unescaped.
    """
    authority = None
    if raw[:1] != b"/":
        absolute = _ABSOLUTE.fullmatch(raw)
        if absolute is None:
            return None
        authority, raw = absolute.groups()
    path, mark, query = raw.partition(b"?")
    if not mark:
        return authority, path, b""
    if _QUERY(query) is None:
        return None
    return authority, path, mark + query
