"""docs/threat-model.md §1 for single paths: every refused form by name, and the forms that must work."""

from __future__ import annotations

import pytest

from proxy.core.request.target import (
    PathAllowance,
    PathForm,
    canonical_path,
    decoded_name,
    encoded_segments,
    refused_form,
    split_target,
    without_prefix,
)

REFUSED = {
    "dot-dot segment": b"/public/../admin",
    "dot segment": b"/./a",
    "final dot-dot": b"/a/..",
    "final dot": b"/a/.",
    "escaped dot-dot": b"/%2e%2e/a",
    "escaped dot-dot, capitals": b"/%2E%2E/a",
    "half escaped dot-dot": b"/.%2e/a",
    "other half escaped dot-dot": b"/%2e./a",
    "lone escaped dot": b"/%2e/a",
    "lone escaped dot at the end": b"/a/%2e",
    "encoded slash around dot-dot": b"/x%2F..%2Fadmin",
    "encoded slash before dot-dot": b"/x%2f..",
    "dot-dot before encoded slash": b"/..%2Fadmin",
    "leading encoded slash and dot-dot": b"/%2F..%2F",
    "everything escaped": b"/x%2f%2e%2e%2fadmin",
    "encoded backslash": b"/a%5cb",
    "encoded backslash, capitals": b"/a%5Cb",
    "encoded backslash and dot-dot": b"/%5C..",
    "backslash": b"/a\\b",
    "backslash and dot-dot": b"/a\\..\\b",
    "dot-dot with parameters": b"/..;/a",
    "dot-dot with named parameters": b"/..;x=y/a",
    "dot with parameters": b"/.;/a",
    "escaped dot with parameters": b"/%2e;x/",
    "dot-dot with escaped semicolon": b"/..%3B/a",
    "dot-dot as parameters": b"/a;..",
    "dot-dot as parameters before a slash": b"/a;../b",
    "dot-dot between semicolon and encoded slash": b"/a;..%2Fb",
    "dot-dot and a space": b"/..%20/a",
    "a space and dot-dot": b"/%20../a",
    "dot-dot and a no-break space": b"/..%C2%A0/a",
    "escaped NUL": b"/%00",
    "escaped NUL in a name": b"/admin%00.png",
    "escaped newline": b"/a%0Ab",
    "escaped carriage return": b"/a%0d%0aX-Auth-User:%20root",
    "escaped tab": b"/a%09b",
    "escaped escape": b"/a%1Bb",
    "escaped DEL": b"/a%7fb",
    "escaped C1 control": b"/a%C2%85b",
    "double encoding": b"/%252e",
    "double encoded dot-dot": b"/%252e%252e/a",
    "double encoded dot before an encoded slash": b"/%252e%2Fa",
    "double encoded dots between double encoded slashes": b"/a%252F..%252Fb",
    "double encoded dots through escaped digits": b"/a/%25%32%65./b",
    "double encoded backslash": b"/a%255Cb",
    "double encoded NUL": b"/a%2500b",
    "double encoded C1 control": b"/a%25C2%2585b",
    "double encoded overlong slash": b"/a%25c0%25afb",
    "double encoded overlong dot": b"/%25e0%2580%25ae",
    "double encoded %u escape": b"/%25u002e%25u002e/a",
    "triple encoding": b"/a%25252Fb",
    "triple encoding through escaped digits": b"/a%252525%32%46b",
    "overlong slash": b"/a%c0%afb",
    "overlong dot": b"/%c0%ae%c0%ae/a",
    "overlong three-byte slash": b"/a%e0%80%afb",
    "overlong NUL": b"/a%c0%80",
    "surrogate": b"/a%ED%A0%80",
    "beyond Unicode": b"/a%F4%90%80%80",
    "lone continuation byte": b"/a%80",
    "cut UTF-8": b"/a%C3",
    "UTF-8 cut by a slash": b"/a%C3/%A9",
    "UTF-8 cut by an encoded slash": b"/a%C3%2F%A9",
    "latin-1 escape": b"/caf%E9",
    "raw byte 0x80": b"/a\x80",
    "raw UTF-8": b"/caf\xc3\xa9",
    "raw 0xff": b"/\xff",
    "fragment": b"/foo#/admin",
    "escape with no hex digits": b"/%zz",
    "escape cut short": b"/a%2",
    "bare percent at the end": b"/a%",
    "bare percent": b"/100%/a",
    "%u escape": b"/%u002e%u002e/a",
    "raw NUL": b"/a\0b",
    "raw newline": b"/a\nb",
    "final newline": b"/a\n",
    "raw space": b"/a b",
    "raw tab": b"/a\tb",
    "raw DEL": b"/a\x7f",
    "question mark": b"/a?b",
    "angle bracket": b"/a<b",
    "quote": b'/a"b',
    "brace": b"/{id}",
    "backtick": b"/a`b",
    "asterisk-form": b"*",
    "no leading slash": b"a/b",
    "authority-form": b"example.com:443",
    "absolute-form": b"http://example.com/a",
    "nothing": b"",
}


@pytest.mark.parametrize("path", REFUSED.values(), ids=REFUSED.keys())
def test_an_ambiguous_path_is_refused(path: bytes) -> None:
    assert canonical_path(path) is None


NONE, SLASH, SEMICOLON, EMPTY, PERCENT = (
    PathAllowance.NONE,
    PathAllowance.ENCODED_SLASH,
    PathAllowance.SEMICOLON,
    PathAllowance.EMPTY_SEGMENT,
    PathAllowance.ENCODED_PERCENT,
)

ACCEPTED: dict[str, tuple[bytes, str, PathAllowance]] = {
    "root": (b"/", "/", NONE),
    "plain": (b"/v1/things/42", "/v1/things/42", NONE),
    "trailing slash kept": (b"/a/", "/a/", NONE),
    "case kept": (b"/Admin", "/Admin", NONE),
    "all path characters": (b"/-._~!$&'()*+,=:@[]|^", "/-._~!$&'()*+,=:@[]|^", NONE),
    "hidden file": (b"/.well-known/x", "/.well-known/x", NONE),
    "three dots": (b"/.../a", "/.../a", NONE),
    "trailing dots": (b"/a../b.", "/a../b.", NONE),
    "dots inside": (b"/v1.2/a..b", "/v1.2/a..b", NONE),
    "escaped tilde": (b"/%7Euser", "/~user", NONE),
    "escaped letter": (b"/%61dmin", "/admin", NONE),
    "escaped dot in a name": (b"/a%2eb", "/a.b", NONE),
    "escaped space": (b"/a%20b", "/a b", NONE),
    "escaped reserved": (b"/a%3Ab%40c%3Fd%23e", "/a:b@c?d#e", NONE),
    "UTF-8": (b"/caf%C3%A9", "/café", NONE),
    "four-byte UTF-8": (b"/%F0%9F%98%80", "/😀", NONE),
    "fullwidth dots are letters": (b"/%EF%BC%8E%EF%BC%8E/a", "/．．/a", NONE),  # noqa: RUF001
    "literal percent": (b"/100%25", "/100%", NONE),
    "literal percent before no hex": (b"/100%25/ab", "/100%/ab", NONE),
    "encoded slash": (b"/a%2Fb", "/a%2Fb", SLASH),
    "encoded slash, small": (b"/a%2fb", "/a%2Fb", SLASH),
    "literal percent before an encoded slash": (b"/%25%2F", "/%%2F", SLASH),
    "encoded slash that makes an empty segment": (b"/a/%2Fb", "/a/%2Fb", SLASH | EMPTY),
    "two encoded slashes": (b"/a%2F%2Fb", "/a%2F%2Fb", SLASH | EMPTY),
    "only an encoded slash": (b"/a/%2F/b", "/a/%2F/b", SLASH),
    "only an encoded slash at the end": (b"/a/%2f", "/a/%2F", SLASH),
    "only encoded slashes, one each": (b"/%2F/%2F", "/%2F/%2F", SLASH),
    "two encoded slashes alone": (b"/a/%2F%2F", "/a/%2F%2F", SLASH | EMPTY),
    "an encoded slash and parameters": (b"/a/%2F;x", "/a/%2F;x", SLASH | SEMICOLON | EMPTY),
    "encoded percent": (b"/100%25ab", "/100%25ab", PERCENT),
    "encoded percent before digits that are no UTF-8": (b"/a%25ffb", "/a%25ffb", PERCENT),
    "double encoded slash": (b"/a%252Fb", "/a%252Fb", PERCENT),
    "double encoding through escaped digits": (b"/a%25%32%65", "/a%252e", PERCENT),
    "double encoding through one escaped digit": (b"/a%252%65", "/a%252e", PERCENT),
    "double encoded letter": (b"/%2561dmin", "/%2561dmin", PERCENT),
    "encoded percent beside an encoded slash": (b"/a%2Fb%252Fc", "/a%2Fb%252Fc", SLASH | PERCENT),
    "percent before an encoded percent": (b"/%25%2541", "/%%2541", PERCENT),
    "semicolon": (b"/a;x=y/b", "/a;x=y/b", SEMICOLON),
    "escaped semicolon": (b"/a%3bx/b", "/a;x/b", SEMICOLON),
    "segment of parameters only": (b"/a/;x/b", "/a/;x/b", SEMICOLON | EMPTY),
    "leading empty segment": (b"//a", "//a", EMPTY),
    "inner empty segment": (b"/a//b", "/a//b", EMPTY),
    "final empty segment": (b"/a//", "/a//", EMPTY),
    "all of them": (b"//a;b%2Fc", "//a;b%2Fc", SLASH | SEMICOLON | EMPTY),
}


@pytest.mark.parametrize(("path", "form", "needed"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_path_has_one_canonical_form_and_lists_its_needs(path: bytes, form: str, needed: int) -> None:
    assert canonical_path(path) == (form, needed)


@pytest.mark.parametrize(
    ("path", "form"),
    [
        (b"/a%2Fb", PathForm.ENCODED_SLASH),
        (b"/a%252Fb", PathForm.ENCODED_PERCENT),
        (b"/%252e", PathForm.ENCODED_PERCENT),
        (b"/a%25252Fb", PathForm.ENCODED_PERCENT),
        (b"/a;b", PathForm.SEMICOLON),
        (b"/a//b", PathForm.EMPTY_SEGMENT),
        (b"/a/../b", PathForm.DOT_SEGMENT),
        (b"/%2e%2E/b", PathForm.DOT_SEGMENT),
        (b"/..%2Fb", PathForm.DOT_SEGMENT),
        (b"/a\\b", PathForm.BACKSLASH),
        (b"/a%5cb", PathForm.BACKSLASH),
        (b"/a%00b", PathForm.CONTROL),
        (b"/a%7Fb", PathForm.CONTROL),
        (b"/a\nb", PathForm.CONTROL),
        (b"/a%C2%85", PathForm.CONTROL),
        (b"/caf\xc3\xa9", PathForm.NON_ASCII),
        (b"/a%zz", PathForm.BAD_ESCAPE),
        (b"/%u002e", PathForm.BAD_ESCAPE),
        (b"/a%", PathForm.BAD_ESCAPE),
        (b"/a%c0%af", PathForm.BAD_UTF8),
        (b"/a b", PathForm.CHARACTER),
        (b"/a#b", PathForm.CHARACTER),
        (b"/<a>", PathForm.CHARACTER),
        (b"", PathForm.NOT_A_PATH),
        (b"http://a/b", PathForm.NOT_A_PATH),
        (b"*", PathForm.NOT_A_PATH),
    ],
)
def test_a_refused_path_has_a_form_from_a_fixed_list(path: bytes, form: PathForm) -> None:
    assert refused_form(path, 0) is form


def test_the_form_is_the_first_one_that_the_route_does_not_allow() -> None:
    path = b"/a%2Fb;c//d%252F"
    forms = (PathForm.ENCODED_SLASH, PathForm.ENCODED_PERCENT, PathForm.SEMICOLON, PathForm.EMPTY_SEGMENT)
    allowed = NONE
    for form, bit in zip(forms, (SLASH, PERCENT, SEMICOLON, EMPTY), strict=True):
        assert refused_form(path, allowed) is form
        allowed |= bit
    assert {bit.name.lower() for bit in PathAllowance if bit.name} == {form.value for form in forms}


def test_every_refused_path_of_these_tests_has_a_form() -> None:
    assert {refused_form(path, 0) for path in REFUSED.values()} <= set(PathForm)


@pytest.mark.parametrize(
    ("path", "prefix", "rest"),
    [
        (b"/npm", b"/npm", b"/"),
        (b"/npm/", b"/npm", b"/"),
        (b"/npm/x/y", b"/npm", b"/x/y"),
        (b"/%6epm/%78", b"/npm", b"/%78"),
        (b"/a/b", b"/a/b", b"/"),
        (b"/a/%62/c/", b"/a/b", b"/c/"),
        (b"/npm//x", b"/npm", b"//x"),
        (b"/npm/%2F", b"/npm", b"/%2F"),
        (b"/npm/http://x/", b"/npm", b"/http://x/"),
    ],
)
def test_a_prefix_is_cut_off_by_whole_segments(path: bytes, prefix: bytes, rest: bytes) -> None:
    assert without_prefix(path, prefix) == rest


def test_a_prefix_is_encoded_as_a_path() -> None:
    assert encoded_segments("/npm/a-b.c") == b"/npm/a-b.c"
    assert encoded_segments("/café/a b") == b"/caf%C3%A9/a%20b"


def test_the_name_of_a_segment_is_decoded_once() -> None:
    assert [decoded_name(form) for form in ("a%2Fb", "a%252Fb", "100%", "%%2F", "%%2541", "%2525")] == [
        "a/b",
        "a%2Fb",
        "100%",
        "%/",
        "%%41",
        "%25",
    ]


def test_a_long_invalid_path_is_refused_in_linear_time() -> None:
    for piece in (b"a", b"a/", b"/", b".a/", b"%61", b";", b"a;"):
        assert canonical_path(b"/" + piece * 20_000 + b"%") is None


TARGETS: dict[str, tuple[bytes, tuple[bytes | None, bytes, bytes]]] = {
    "origin-form": (b"/a/b", (None, b"/a/b", b"")),
    "query": (b"/a?b=c&d", (None, b"/a", b"?b=c&d")),
    "empty query kept": (b"/a?", (None, b"/a", b"?")),
    "second question mark": (b"/a?b?c", (None, b"/a", b"?b?c")),
    "query of bare characters": (b'/a?[]{}|\\^`"<>', (None, b"/a", b'?[]{}|\\^`"<>')),
    "a path that looks like an authority": (b"//evil.example/a", (None, b"//evil.example/a", b"")),
    "absolute-form": (b"http://example.com/a?b", (b"example.com", b"/a", b"?b")),
    "absolute-form with port": (b"HTTPS://example.com:8443/", (b"example.com:8443", b"/", b"")),
    "absolute-form with IPv6": (b"http://[::1]:80/a", (b"[::1]:80", b"/a", b"")),
    "dot segments are for canonical_path": (b"/a/../b", (None, b"/a/../b", b"")),
}


@pytest.mark.parametrize(("raw", "parts"), TARGETS.values(), ids=TARGETS.keys())
def test_a_target_is_split_without_changes(raw: bytes, parts: tuple[bytes | None, bytes, bytes]) -> None:
    assert split_target(raw) == parts


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"*",
        b"example.com:443",
        b"example.com/a",
        b"a/b",
        b"ftp://example.com/a",
        b"http:/a",
        b"http:///a",
        b"http://example.com",
        b"http://example.com?a",
        b"http://user@example.com/a",
        b"http://user:pw@example.com/a",
        b"http://exa mple.com/a",
        b"http://example.com\\a/b",
        b"http://example.com#/a",
        b"/a?b c",
        b"/a?b\x00",
        b"/a?b\n",
        b"/a?b\r\nX: y",
        b"/a?b#c",
        b"/a?caf\xc3\xa9",
        b"/a?\x7f",
        b"?a=/b",
    ],
)
def test_a_target_of_another_form_is_refused(raw: bytes) -> None:
    assert split_target(raw) is None
