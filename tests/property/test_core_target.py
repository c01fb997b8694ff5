"""``canonical_path`` agrees with an independent, slow implementation of the same rules, segment by segment."""

from __future__ import annotations

import string
import unicodedata
from urllib.parse import quote_from_bytes, unquote_to_bytes

from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.core.request.target import PathAllowance, canonical_path, split_target

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
        for at, char in enumerate(form):
            if char == "%":
                tail = form[at + 1 :]
                if len(tail) >= 2 and all(digit in string.hexdigits for digit in tail[:2]):
                    return None
                if len(tail) >= 5 and tail[0] in "uU" and all(digit in string.hexdigits for digit in tail[1:5]):
                    return None
        if ";" in text:
            needed |= PathAllowance.SEMICOLON
        for name in text.split("/"):
            flat_names.append(name)
            if any(part.strip() in (".", "..") for part in name.split(";")):
                return None
        forms.append(form.replace("\x01", "%2F"))
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
        quote_from_bytes(part.encode(), safe="/-._~!$&'()*+,;=:@[]|^").encode() for part in form.split("%2F")
    )
    assert canonical_path(again) == (form, needed)


@given(paths)
@settings(max_examples=200)
def test_without_an_allowance_decoding_keeps_the_segments(path: bytes) -> None:
    answer = canonical_path(path)
    if answer is None or answer[1] & PathAllowance.ENCODED_SLASH:
        return
    assert answer[0].encode() == unquote_to_bytes(path)
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
