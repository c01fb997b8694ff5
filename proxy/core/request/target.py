r"""The request target: the canonical form of its path, or a refusal (docs/threat-model.md §1).

Routes match the canonical form, but the backend gets the client's own bytes. So a path is accepted only if every
reasonable backend reads it in the same way:

1. A path starts with ``/`` and holds RFC 3986 path characters, ``[ ] | ^`` (which browsers do not escape) and ``%XX``.
   All else is refused: ``\``, ``#``, space, control bytes, bytes from 0x80, ``%`` without two hex digits.
2. Escapes decode to UTF-8 (RFC 3629: no overlong form, no surrogate) without control characters (C0, DEL, C1) and
   without ``\``. The canonical form is the decoded text; only an encoded slash stays escaped, as ``%2F``.
3. Decoding the decoded text again must change nothing (``%252e``, ``%25%32%65``, ``%25u002e``). With ENCODED_PERCENT an
   escaped ``%`` may be followed by two hex digits. Then a second decoding must give no dot segment, control character,
   ``\`` or overlong form either, and a third one must change nothing. In the canonical form such a ``%`` stays escaped,
   as ``%25``.
4. No segment is ``.`` or ``..``, with dots plain or escaped, bounded by ``/``, ``%2F`` or ``;``, with or without white
   space around the dots. Such a path is refused, never resolved.
5. ``%2F`` needs ENCODED_SLASH and never separates two segments; ``;`` and ``%3B`` need SEMICOLON; an empty segment
   (``//``, one made by ``%2F``, or one with only ``;parameters``) needs EMPTY_SEGMENT. One trailing slash makes no
   empty segment: ``/a/`` is not ``/a``. A segment that is only ``%2F`` is not empty: its name is ``/``.
6. The result lists what a path needs; the matching route says what it allows, by default nothing.
7. The query is visible ASCII without ``#``. It takes no part in matching, except for routes with conditions on it
   (``request.query``).
8. No function here raises.
"""

from __future__ import annotations

import re
from enum import IntFlag, StrEnum
from typing import Final


class PathAllowance(IntFlag):
    """Ambiguous path forms that a route may allow, because its backend is known to read them as patgate does."""

    NONE = 0
    ENCODED_SLASH = 1
    SEMICOLON = 2
    EMPTY_SEGMENT = 4
    ENCODED_PERCENT = 8


class PathForm(StrEnum):
    """The form for which a path is refused, as the log names it. The first four can be allowed by a route."""

    ENCODED_SLASH = "encoded_slash"
    ENCODED_PERCENT = "encoded_percent"
    SEMICOLON = "semicolon"
    EMPTY_SEGMENT = "empty_segment"
    DOT_SEGMENT = "dot_segment"
    BACKSLASH = "backslash"
    CONTROL = "control"
    NON_ASCII = "non_ascii"
    BAD_ESCAPE = "bad_escape"
    BAD_UTF8 = "bad_utf8"
    CHARACTER = "character"
    """A character that a path must escape, such as a space, ``#`` or ``<``."""
    NOT_A_PATH = "not_a_path"
    """Another form of a target, or one that names another host."""


_ALLOWABLE: Final = (
    (PathAllowance.ENCODED_SLASH, PathForm.ENCODED_SLASH),
    (PathAllowance.ENCODED_PERCENT, PathForm.ENCODED_PERCENT),
    (PathAllowance.SEMICOLON, PathForm.SEMICOLON),
    (PathAllowance.EMPTY_SEGMENT, PathForm.EMPTY_SEGMENT),
)

_CHARS: Final = rb"A-Za-z0-9_~!$&'()*+,=:@\[\]|^-"

# A translation that changes every byte which needs a closer look. A path that it leaves unchanged, and that has no
# segment that is empty or begins with a dot, is canonical and needs nothing; all others take the slow way.
_NOTHING_SPECIAL: Final = re.compile(rb"[./" + _CHARS + rb"]")
_PLAIN: Final = bytes([byte ^ (_NOTHING_SPECIAL.match(bytes((byte,))) is None) for byte in range(256)])
_WELL_FORMED: Final = re.compile(rb"/(?:[./;" + _CHARS + rb"]|%[0-9A-Fa-f]{2})*+")
_REFUSED_ESCAPE: Final = re.compile(rb"%(?:[01][0-9A-Fa-f]|5[Cc]|7[Ff])")
_ESCAPE: Final = re.compile(rb"%..", re.DOTALL)
_HEX_ESCAPE: Final = re.compile(rb"%[0-9A-Fa-f]{2}")
_ESCAPED_PERCENT: Final = re.compile(r"%(?=[0-9A-Fa-f]{2})", re.ASCII)
_OVERLONG: Final = re.compile(rb"[\xc0\xc1]|\xe0[\x80-\x9f]|\xf0[\x80-\x8f]")
_STILL_ENCODED: Final = re.compile(r"%(?:[0-9A-Fa-f]{2}|[uU][0-9A-Fa-f]{4})", re.ASCII)
_C1: Final = re.compile("[\u0080-\u009f]")
_DOTS: Final = frozenset((".", ".."))

# Marks the encoded slashes until the segments are checked; rule 2 keeps this byte out of every decoded path.
_SLASH_MARK: Final = "\0"
_ONLY_A_SLASH: Final = re.compile(r"(?<=/)\0(?=/|\Z)")

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
    if _C1.search(text) is not None or _has_dot_segment(text):
        return None
    needed = 0
    if _STILL_ENCODED.search(text) is not None:
        if not _may_be_decoded_again(text):
            return None
        needed |= 8
        text = _ESCAPED_PERCENT.sub("%25", text)
    if ";" in text:
        needed |= 2
    shape = text
    if _SLASH_MARK in text:
        needed |= 1
        shape = _ONLY_A_SLASH.sub("-", text).replace(_SLASH_MARK, "/")
    if "//" in shape or "/;" in shape:
        needed |= 4
    return text.replace(_SLASH_MARK, "%2F"), needed


def _has_dot_segment(text: str) -> bool:
    """Whether a decoded text has a segment ``.`` or ``..`` (rule 4)."""
    if "." not in text:
        return False
    flat = text.replace(_SLASH_MARK, "/")
    return any(part.strip() in _DOTS for segment in flat.split("/") for part in segment.split(";"))


def _may_be_decoded_again(text: str) -> bool:
    """Whether a decoded text with further escapes is harmless even for a server that decodes it again (rule 3)."""
    encoded = text.encode("utf-8")
    if _REFUSED_ESCAPE.search(encoded) is not None:
        return False
    decoded = _HEX_ESCAPE.sub(lambda found: _DECODED[found[0]], encoded)
    if _OVERLONG.search(decoded) is not None:
        return False
    again = decoded.decode("utf-8", "replace")
    return _STILL_ENCODED.search(again) is None and _C1.search(again) is None and not _has_dot_segment(again)


def decoded_name(segment: str) -> str:
    """The name that a segment of a canonical path stands for."""
    return segment.replace("%2F", "/").replace("%25", "%")


def encoded_segments(path: str) -> bytes:
    """A decoded path of literal segments, percent-encoded for use in a target or a field."""
    return b"".join(bytes((byte,)) if byte in _UNESCAPED else b"%%%02X" % byte for byte in path.encode("utf-8"))


def without_prefix(path: bytes, prefix: bytes) -> bytes:
    """The rest of a path after as many segments as ``prefix`` has; ``/`` if none are left.

    The slashes of a path and those of its canonical form are the same, because an encoded slash stays encoded there. So
    if the canonical form begins with the segments of ``prefix``, exactly these are removed, in any spelling.
    """
    count = prefix.count(b"/") + 1
    parts = path.split(b"/", count)
    return b"/" + parts[count] if len(parts) > count else b"/"


def refused_form(path: bytes, allow: int) -> PathForm:
    """The form for which a path is refused on a route that allows ``allow``; for the log, so it need not be fast."""
    if not path.startswith(b"/"):
        return PathForm.NOT_A_PATH
    for form, pattern in _FORMS:
        if pattern.search(path) is not None:
            return form
    judged = canonical_path(path)
    if judged is not None:
        missing = judged[1] & ~allow
        # Nothing is missing if the path was refused for what is left of it without the prefix of its route.
        return next((form for bit, form in _ALLOWABLE if missing & bit), PathForm.EMPTY_SEGMENT)
    try:
        text = _ESCAPE.sub(lambda found: _DECODED[found[0]], path).decode("utf-8")
    except UnicodeDecodeError:
        return PathForm.BAD_UTF8
    if _C1.search(text) is not None:
        return PathForm.CONTROL
    return PathForm.DOT_SEGMENT if _has_dot_segment(text) else PathForm.ENCODED_PERCENT


_UNESCAPED: Final = frozenset(byte for byte in range(256) if _NOTHING_SPECIAL.match(bytes((byte,))) is not None)
_FORMS: Final = (
    (PathForm.NON_ASCII, re.compile(rb"[\x80-\xff]")),
    (PathForm.CONTROL, re.compile(rb"[\x00-\x1f\x7f]|%(?:[01][0-9A-Fa-f]|7[Ff])")),
    (PathForm.BACKSLASH, re.compile(rb"\\|%5[Cc]")),
    (PathForm.BAD_ESCAPE, re.compile(rb"%(?![0-9A-Fa-f]{2})")),
    (PathForm.CHARACTER, re.compile(rb"[^./;%" + _CHARS + rb"]")),
)
"""Forms that a pattern finds in a path, in this order."""


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
