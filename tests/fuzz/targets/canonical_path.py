"""Fuzz target: an accepted request target has the same meaning for the usual kinds of decoders.

It is compared with: llhttp's split of a target; nginx, which decodes escapes while it resolves dots and merges slashes;
a CGI or WSGI server, which decodes all escapes; a browser or Node, which resolves dots, escaped or not, and decodes
nothing; a servlet container, which drops ``;parameters`` first; and a second decoding by a backend behind the backend.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

import httptools

from proxy.core.request.target import PathAllowance, canonical_path, decoded_name, split_target
from tests.fuzz.targets.target import Target

_SAFE: Final = "/-._~!$&'()*+,;=:@[]|^"
_DOTS: Final = (b".", b"..")
_ALL: Final = sum(PathAllowance)


def as_nginx(path: bytes) -> bytes | None:
    """``ngx_http_parse_complex_uri`` with ``merge_slashes on``: escapes are decoded once, and the result counts."""
    segments: list[bytes] = []
    for segment in unquote_to_bytes(path).split(b"/")[1:]:
        if segment == b"..":
            if not segments:
                return None
            segments.pop()
        elif segment != b".":
            segments.append(segment)
    merged = [segment for segment in segments[:-1] if segment] + segments[-1:]
    return b"/" + b"/".join(merged)


def as_browser(path: bytes) -> bytes:
    """The URL Standard's path state: backslashes are slashes, dots resolve even if escaped, nothing is decoded."""
    segments: list[bytes] = []
    given = path.replace(b"\\", b"/").split(b"/")[1:]
    for at, segment in enumerate(given):
        dots = segment.lower().replace(b"%2e", b".")
        if dots == b"..":
            segments = segments[:-1]
        elif dots != b".":
            segments.append(segment)
            continue
        if at == len(given) - 1:
            segments.append(b"")
    return b"/" + b"/".join(segments)


def as_servlet(path: bytes) -> bytes:
    """The path without its parameters, then decoded (Jakarta Servlet 6, section 3.5.2)."""
    return unquote_to_bytes(b"/".join(segment.partition(b";")[0] for segment in path.split(b"/")))


def check_split(raw: bytes) -> bytes:
    """The path of ``raw`` by ``split_target``, or all of ``raw`` if that refuses it."""
    parts = split_target(raw)
    if parts is None:
        return raw
    authority, path, query = parts
    assert path.startswith(b"/") and b"?" not in path
    assert query[:1] in (b"", b"?") and all(0x21 <= byte <= 0x7E and byte != 0x23 for byte in query)
    assert raw.endswith(path + query)
    before = raw[: len(raw) - len(path + query)]
    assert before.lower() in (
        (b"",) if authority is None else (b"http://" + authority.lower(), b"https://" + authority.lower())
    )
    if canonical_path(path) is None or not raw.isascii():
        return path
    try:
        url = httptools.parse_url(raw)
    except httptools.HttpParserInvalidURLError:
        # It is stricter about authorities, which are compared with a Host that has passed ``grammar.host_name``.
        assert authority is not None
        return path
    assert (url.path, url.query or b"") == (path, query[1:])
    assert [url.fragment, url.userinfo] == [None, None]
    assert bool(url.host) == bool(authority)
    return path


def run(data: bytes) -> None:
    path = check_split(data)
    answer = canonical_path(path)
    if answer is None:
        return
    form, needed = answer
    assert not needed & ~_ALL
    decoded = unquote_to_bytes(path)
    assert decoded.decode() == decoded_name(form)
    again = unquote_to_bytes(decoded)
    assert (again != decoded) == bool(needed & PathAllowance.ENCODED_PERCENT), "decoding twice reads something else"
    assert unquote_to_bytes(again) == again, "decoding three times reads something else"
    for text in (
        path,
        decoded,
        again,
        again.replace(b";", b"/"),
        decoded.replace(b"\\", b"/"),
        decoded.replace(b";", b"/"),
    ):
        assert not any(segment.strip() in _DOTS for segment in text.split(b"/")), "a dot segment"
    assert form.count("/") == path.count(b"/"), "other segments than are seen"
    assert as_browser(path) == path
    # nginx merges the slashes around a segment that is only an encoded slash.
    if not needed & PathAllowance.EMPTY_SEGMENT and b"//" not in decoded:
        assert as_nginx(path) == decoded
    if not needed & PathAllowance.SEMICOLON:
        assert b";" not in decoded
        assert as_servlet(path) == decoded
    if not needed & PathAllowance.ENCODED_SLASH:
        assert form.replace("%25", "%").encode() == decoded
    same = b"%2F".join(
        quote_from_bytes(part.replace("%25", "%").encode(), safe=_SAFE).encode() for part in form.split("%2F")
    )
    assert canonical_path(same) == answer, "not idempotent"


TARGET: Final = Target(
    name="canonical_path",
    run=run,
    seeds=(
        b"/",
        b"/v1/things/42?x=/../y#",
        b"/%61dmin/%7E/%C3%A9/a%20b",
        b"/public/%2e%2e/admin",
        b"/a%2fb/..;x=y/c",
        b"//a/;b/%3Bc/./d",
        b"/%252e%25%32%65/%25u002e",
        b"/x%5c..%5cadmin%00%c0%af%C2%85",
        b"/%E3%80%80../%EF%BC%8E%EF%BC%8E/a",
        b"http://gateway:80/v1/things?q",
        b"HTTPS://[::1]/a",
        b"http://user@gateway/a",
        b"*",
        b"gateway:443",
    ),
    pieces=(
        b"/", b"//", b".", b"..", b"...", b";", b"%2e", b"%2E", b"%2F", b"%2f", b"%5C", b"\\", b"%3B", b"%25",
        b"%252e", b"%", b"%2", b"%00", b"%0a", b"%7f", b"%61", b"%20", b"%09", b"%C3%A9", b"%c0%af", b"%C2%85",
        b"%C2%A0", b"%E2%80%A8", b"%EF%BC%8F", b"%ED%A0%80", b"%F4%90%80%80", b"u002e", b"%u002e", b"#", b"?", b" ",
        b"\x80", b"|", b"{", b"http://g", b"@",
    ),
    longest=256,
)  # fmt: skip
