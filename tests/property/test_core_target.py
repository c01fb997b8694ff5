"""``canonical_path`` agrees with an independent, slow implementation of the same rules, segment by segment."""

from __future__ import annotations

import string
import unicodedata
from itertools import pairwise
from urllib.parse import quote_from_bytes, unquote_to_bytes

from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.core.request.target import (
    PathAllowance,
    canonical_path,
    decoded_name,
    encoded_segments,
    refused_form,
    split_target,
    without_prefix,
)

PIECES = [
    *(
        "/",
        "/",
        "/",
        ".",
        "..",
        "...",
        ";",
        "%2e",
        "%2E",
        "%2F",
        "%2f",
        "%5C",
        "%5c",
        "\\",
        "%3B",
        "%25",
        "%252e",
        "%2",
        "%",
    ),
    *(
        "%00",
        "%0a",
        "%7f",
        "%61",
        "%7E",
        "%20",
        "%C3%A9",
        "%c0%af",
        "%C2%85",
        "%C3",
        "%A9",
        "%32",
        "%65",
        "u002e",
        "2F",
        "2e",
    ),
    *("a", "things", "42", "x=y", "#", "?", " ", "\x80", "|", "{", "%EF%BC%8E", "%C2%A0", "%zz"),
]
paths = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=9).map(lambda pieces: ("/" + "".join(pieces)).encode("latin-1")),
    st.lists(st.sampled_from(PIECES), max_size=5).map(lambda pieces: "".join(pieces).encode("latin-1")),
    st.binary(max_size=12).map(lambda tail: b"/" + tail),
    st.text(alphabet=string.ascii_letters + "/.-_", max_size=20).map(lambda tail: b"/" + tail.encode()),
)


def is_escape(text: str, at: int) -> bool:
    """Whether the percent sign at this place would be read as the beginning of an escape."""
    tail = text[at + 1 :]
    if len(tail) >= 2 and all(digit in string.hexdigits for digit in tail[:2]):
        return True
    return len(tail) >= 5 and tail[0] in "uU" and all(digit in string.hexdigits for digit in tail[1:5])


def decodes_to_a_harmless_name(segment: str) -> bool:
    """Whether a decoded segment can be decoded once more, gives no dot segment, and then has no further escape."""
    decoded = unquote_to_bytes(segment)
    for lead, most in ((0xE0, 0xA0), (0xF0, 0x90)):
        if any(one == lead and 0x80 <= other < most for one, other in pairwise(decoded)):
            return False
    if {0xC0, 0xC1} & set(decoded):
        return False
    again = decoded.decode("utf-8", "replace")
    if any(unicodedata.category(char) == "Cc" or char == "\\" for char in again):
        return False
    if any(char == "%" and is_escape(again, at) for at, char in enumerate(again)):
        return False
    return not any(part.strip() in (".", "..") for name in again.split("/") for part in name.split(";"))


def oracle(path: bytes) -> tuple[str, int] | None:
    """The rules of docs/threat-model.md §1, applied to one segment and one character at a time."""
    if not path.startswith(b"/"):
        return None
    needed = PathAllowance.NONE
    forms: list[str] = []
    flat_names: list[str] = []
    for segment in path[1:].split(b"/"):
        decoded = bytearray()
        shown = bytearray()
        at = 0
        while at < len(segment):
            char = chr(segment[at])
            if char == "%":
                digits = segment[at + 1 : at + 3].decode("latin-1")
                if len(digits) != 2 or any(digit not in string.hexdigits for digit in digits):
                    return None
                value = int(digits, 16)
                at += 3
                if value < 0x20 or value in (0x7F, ord("\\")):
                    return None
                decoded.append(value)
                if value == ord("/"):
                    needed |= PathAllowance.ENCODED_SLASH
                    # A mark that no decoded text can contain, because 0x01 was refused above.
                    shown.append(1)
                else:
                    shown.append(value)
            elif char in string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@[]|^":
                decoded.append(segment[at])
                shown.append(segment[at])
                at += 1
            else:
                return None
        try:
            text, form = decoded.decode(), shown.decode()
        except UnicodeDecodeError:
            return None
        if any(unicodedata.category(char) == "Cc" for char in text):
            return None
        canonical = ""
        for at, char in enumerate(form):
            canonical += char
            if char == "%" and is_escape(form, at):
                needed |= PathAllowance.ENCODED_PERCENT
                canonical += "25"
        if PathAllowance.ENCODED_PERCENT & needed and not decodes_to_a_harmless_name(form.replace("\x01", "/")):
            return None
        if ";" in text:
            needed |= PathAllowance.SEMICOLON
        for name in text.split("/"):
            if any(part.strip() in (".", "..") for part in name.split(";")):
                return None
        flat_names += [text] if text == "/" else text.split("/")
        forms.append(canonical.replace("\x01", "%2F"))
    last = len(flat_names) - 1
    for number, name in enumerate(flat_names):
        if name.startswith(";") or (not name and number != last):
            needed |= PathAllowance.EMPTY_SEGMENT
    return "/" + "/".join(forms), int(needed)


@given(paths)
@settings(max_examples=700)
@example(b"/")
@example(b"//")
@example(b"/..;/a")
@example(b"/%25%2F")
@example(b"/%25%32%46")
@example(b"/%2F")
@example(b"/a%25%32%65%2F")
def test_the_fast_and_the_slow_implementation_agree(path: bytes) -> None:
    assert canonical_path(path) == oracle(path)


@given(paths)
@settings(max_examples=200)
def test_no_segment_of_an_accepted_path_is_a_dot_segment_however_often_it_is_decoded(path: bytes) -> None:
    answer = canonical_path(path)
    if answer is None:
        return
    decoded = path
    for _ in range(3):
        for cut in (decoded, decoded.replace(b";", b"/"), decoded.replace(b"\\", b"/")):
            assert not {b".", b".."} & set(cut.split(b"/"))
        decoded = unquote_to_bytes(decoded)


@given(paths)
@settings(max_examples=200)
def test_the_canonical_form_is_its_own_canonical_form(path: bytes) -> None:
    answer = canonical_path(path)
    if answer is None:
        return
    form, needed = answer
    again = b"%2F".join(
        quote_from_bytes(part.replace("%25", "%").encode(), safe="/-._~!$&'()*+,;=:@[]|^").encode()
        for part in form.split("%2F")
    )
    assert canonical_path(again) == (form, needed)


@given(paths, paths)
@settings(max_examples=200)
@example(b"/a%2Fb", b"/a%252Fb")
@example(b"/%25%2F", b"/%25%252F")
def test_two_paths_have_one_canonical_form_only_if_they_decode_to_the_same_segments(one: bytes, other: bytes) -> None:
    forms = [canonical_path(path) for path in (one, other)]
    if None not in forms:
        names = [[unquote_to_bytes(segment) for segment in path.split(b"/")] for path in (one, other)]
        assert (forms[0] == forms[1]) is (names[0] == names[1])


@given(paths)
@settings(max_examples=300)
def test_the_name_of_each_segment_is_what_decoding_once_gives(path: bytes) -> None:
    answer = canonical_path(path)
    if answer is not None:
        assert [decoded_name(segment).encode() for segment in answer[0].split("/")] == [
            unquote_to_bytes(segment) for segment in path.split(b"/")
        ]


@given(paths, st.sampled_from([b"", b"/a", b"/%61", b"/a/caf%C3%A9", b"/%61/caf%c3%a9"]))
@settings(max_examples=300)
def test_what_is_left_without_a_prefix_is_the_rest_of_the_canonical_form(tail: bytes, before: bytes) -> None:
    """The rest is judged and run alike: its canonical form is that of the whole path without the prefix."""
    prefix = "/a/café" if before.count(b"/") == 2 else "/a"
    path = before + tail
    answer = canonical_path(path)
    if answer is None or not f"{answer[0]}/".startswith(f"{prefix}/"):
        return
    rest = without_prefix(path, encoded_segments(prefix))
    assert path.endswith(rest) or (rest == b"/" and answer[0] == prefix)
    if rest.startswith(b"//"):
        # The gateway refuses these.
        assert answer[1] & PathAllowance.EMPTY_SEGMENT
        return
    form, needed = canonical_path(rest) or ("", 0)
    assert form == answer[0].removeprefix(prefix) or (form == "/" and answer[0] == prefix)
    assert not needed & ~answer[1]


@given(paths, st.integers(0, 15))
@settings(max_examples=300)
def test_every_refused_path_has_a_form_that_its_route_does_not_allow(path: bytes, allow: int) -> None:
    answer = canonical_path(path)
    if answer is not None and not answer[1] & ~allow:
        return
    form = refused_form(path, allow)
    if answer is not None:
        assert PathAllowance[form.name] & answer[1] & ~allow


@given(paths)
@settings(max_examples=200)
def test_without_an_allowance_decoding_keeps_the_segments(path: bytes) -> None:
    answer = canonical_path(path)
    if answer is None or answer[1] & PathAllowance.ENCODED_SLASH:
        return
    assert answer[0].replace("%25", "%").encode() == unquote_to_bytes(path)
    assert answer[0].count("/") == path.count(b"/")


@given(st.binary(max_size=40) | paths)
@settings(max_examples=200)
def test_splitting_a_target_never_raises_and_loses_nothing(raw: bytes) -> None:
    parts = split_target(raw)
    if parts is None:
        return
    authority, path, query = parts
    assert raw.endswith(path + query)
    assert path.startswith(b"/")
    assert b"?" not in path
    assert authority is not None or raw == path + query
    assert all(0x21 <= byte <= 0x7E and byte != ord("#") for byte in query)
