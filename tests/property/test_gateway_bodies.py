"""Body parsing: the result does not depend on where the input is cut, and llhttp (httptools) accepts what we accept.

llhttp is stricter only in parts that the gateway does not forward, because it encodes the chunks again:
* Its chunk extensions must be names and values; ours are at most 256 bytes without control characters.
* It refuses ``Content-Length`` and ``Transfer-Encoding`` in trailers; we drop all trailers.
It is also less strict: it accepts extensions and trailers of any size.
"""

from __future__ import annotations

import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.gateway.http1.body import (
    EXTENSION_LIMIT,
    LINE_LIMIT,
    TRAILER_LIMIT,
    BodyReader,
    ChunkedBody,
    CloseBody,
    FramingError,
    LengthBody,
    encode_chunks,
)
from tests.fuzz.targets import chunked_body
from tests.fuzz.targets.chunked_body import by_llhttp

BEHIND = b"GET /next HTTP/1.1\r\n"

names = st.sampled_from([b"X-A", b"x_b", b"Trailer!"])
values = st.lists(st.sampled_from(list(b'ab \t\x80\xff;,"')), max_size=6).map(bytes)
extensions = st.just(b"") | st.sampled_from([b";a", b";a=b", b";a=b;c", b';a="q ;"', b";n=1234567890"])
datas = st.lists(st.sampled_from(list(b"\r\n0a;")), min_size=1, max_size=20).map(bytes)


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A valid chunked body as bytes, and its payload."""
    payload = draw(st.lists(datas, max_size=4))
    wire = b""
    for data in payload:
        size = draw(st.sampled_from([b"%x", b"%X", b"0%x", b"00000000000%x"])) % len(data)
        wire += size + draw(extensions) + b"\r\n" + data + b"\r\n"
    wire += draw(st.sampled_from([b"0", b"000"])) + draw(extensions) + b"\r\n"
    wire += b"".join(b"%s:%s\r\n" % field for field in draw(st.lists(st.tuples(names, values), max_size=2)))
    return wire + b"\r\n", b"".join(payload)


def feed(body: BodyReader, *pieces: bytes) -> tuple[bytes, bytes]:
    """The payload in ``pieces`` and the bytes after the body, which ends in the last piece or not at all."""
    payload, behind = b"", b""
    for piece in pieces:
        if body.done:
            behind += piece
            continue
        found, behind = body.feed(piece)
        payload += b"".join(found)
        if behind:
            assert body.done
    return payload, behind


@given(chunked())
@settings(max_examples=80)
def test_a_chunked_body_is_the_same_wherever_it_is_cut(body: tuple[bytes, bytes]) -> None:
    wire, payload = body
    read = by_llhttp(wire)
    assert read is not None
    assert (read.payload, read.complete) == (payload, True)
    whole = wire + BEHIND
    for cut in range(len(whole) + 1):
        machine = ChunkedBody()
        assert feed(machine, whole[:cut], whole[cut:]) == (payload, BEHIND)
        assert machine.done
    machine = ChunkedBody()
    assert feed(machine, *(whole[at : at + 1] for at in range(len(whole)))) == (payload, BEHIND)


@given(chunked())
@settings(max_examples=40)
def test_a_chunked_body_does_not_end_early(body: tuple[bytes, bytes]) -> None:
    wire, payload = body
    for cut in range(len(wire)):
        machine = ChunkedBody()
        found, behind = feed(machine, wire[:cut])
        assert not machine.done
        assert behind == b""
        assert payload.startswith(found)


MUTATIONS = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b";",
    b"+",
    b"-",
    b"0x",
    b"_",
    b"0",
    b"f",
    b"g",
    b"\x80",
    b"0\r\n\r\n",
    b"ffffffffffffffff",
]


@given(chunked(), st.data())
@settings(max_examples=400)
def test_a_mutated_body_that_we_accept_is_read_alike_by_llhttp(body: tuple[bytes, bytes], data: st.DataObject) -> None:
    wire, _ = body
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(wire)))
        put = data.draw(st.sampled_from(MUTATIONS))
        wire = wire[:at] + put + wire[at + data.draw(st.integers(0, 2)) :]
    machine = ChunkedBody()
    try:
        payload, behind = feed(machine, wire)
    except FramingError:
        refused_wherever_it_is_cut(wire)
        return
    end = len(wire) - len(behind)
    read = by_llhttp(wire[:end])
    if read is None:
        assert stricter_in_extensions_or_trailers(wire[:end])
        return
    assert (read.payload, read.complete) == (payload, machine.done)


def refused_wherever_it_is_cut(wire: bytes) -> None:
    for cut in range(len(wire) + 1):
        machine = ChunkedBody()
        try:
            feed(machine, wire[:cut], wire[cut:])
        except FramingError:
            continue
        raise AssertionError(f"accepted when cut at {cut}")


def stricter_in_extensions_or_trailers(wire: bytes) -> bool:
    """Whether llhttp accepts the body that it refuses once the extensions and trailers are removed."""
    machine = ChunkedBody()
    pieces: list[bytes] = []
    for at in range(len(wire)):
        pieces += machine.feed(wire[at : at + 1])[0]
    again = by_llhttp(encode_chunks(pieces, last=machine.done) if pieces or machine.done else b"")
    in_trailers = re.search(rb"(?:\A|\r\n)0+[^\r\n]*\r\n", wire) is not None
    return again is not None and again.payload == b"".join(pieces) and (b";" in wire or machine.done or in_trailers)


@given(st.lists(st.lists(datas, max_size=3), max_size=5))
def test_encoding_and_decoding_gives_the_payload_back(writes: list[list[bytes]]) -> None:
    wire = b"".join(encode_chunks(pieces, last=False) for pieces in writes) + encode_chunks([], last=True)
    payload = b"".join(data for pieces in writes for data in pieces)
    machine = ChunkedBody()
    assert feed(machine, wire) == (payload, b"")
    assert machine.done
    read = by_llhttp(wire)
    assert read is not None
    assert (read.payload, read.complete) == (payload, True)


@given(st.lists(datas, min_size=1, max_size=5))
def test_the_last_payload_and_the_end_may_be_one_write(pieces: list[bytes]) -> None:
    machine = ChunkedBody()
    assert feed(machine, encode_chunks(pieces, last=True) + BEHIND) == (b"".join(pieces), BEHIND)
    assert machine.done


@given(st.binary(max_size=30), st.binary(max_size=10), st.lists(st.integers(0, 40), max_size=4))
def test_a_body_of_a_length_ends_where_it_says(payload: bytes, behind: bytes, cuts: list[int]) -> None:
    whole = payload + behind
    at = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    machine = LengthBody(len(payload))
    assert machine.done == (not payload)
    assert feed(machine, *(whole[a:b] for a, b in itertools.pairwise(at))) == (payload, behind)
    assert machine.done


@given(st.lists(st.binary(max_size=10)))
def test_a_body_that_ends_with_its_connection_has_no_other_end(pieces: list[bytes]) -> None:
    machine = CloseBody()
    assert feed(machine, *pieces) == (b"".join(pieces), b"")
    assert not machine.done


def refused(wire: bytes) -> bool:
    machine = ChunkedBody()
    try:
        feed(machine, wire)
    except FramingError:
        return True
    return False


def test_extension_size_and_trailer_limits_are_exact() -> None:
    assert not refused(b"1;" + b"e" * EXTENSION_LIMIT + b"\r\nx\r\n0\r\n\r\n")
    assert refused(b"1;" + b"e" * (EXTENSION_LIMIT + 1) + b"\r\nx\r\n0\r\n\r\n")
    assert not refused(b"0" * 15 + b"1\r\nx\r\n0\r\n\r\n")
    assert refused(b"0" * 16 + b"1\r\nx\r\n0\r\n\r\n")
    line = b"X: " + b"t" * 1019 + b"\r\n"
    assert not refused(b"0\r\n" + line * (TRAILER_LIMIT // 1024) + b"\r\n")
    assert refused(b"0\r\n" + line * (TRAILER_LIMIT // 1024) + b"X:\r\n\r\n")


def test_a_line_that_does_not_end_is_refused_and_holds_little_memory() -> None:
    for beginning in (b"1;", b"1", b"0\r\nX: "):
        machine = ChunkedBody()
        fed = 0
        try:
            machine.feed(beginning)
            while fed < 10 * TRAILER_LIMIT:
                machine.feed(b"1" * 100)
                fed += 100
        except FramingError:
            assert fed <= TRAILER_LIMIT + 100
            continue
        raise AssertionError("a line without end was kept")


def test_white_space_in_front_of_an_extension_is_bounded_however_it_comes() -> None:
    wire = b"1" + b" " * 5000 + b";x\r\na\r\n0\r\n\r\n"
    assert refused(wire)
    machine = ChunkedBody()
    try:
        feed(machine, wire[:4000], wire[4000:])
    except FramingError:
        return
    raise AssertionError("white space without end was accepted")


def test_the_longest_size_line_may_be_cut_anywhere() -> None:
    """Found by fuzzing: a line that was cut between its CR and LF counted as one byte too long."""
    line = b"1" + b" " * (LINE_LIMIT - EXTENSION_LIMIT - 1) + b";" + b"e" * (EXTENSION_LIMIT - 1)
    assert len(line) == LINE_LIMIT
    wire = line + b"\r\nx\r\n0\r\n\r\n"
    for cut in range(len(wire)):
        assert feed(ChunkedBody(), wire[:cut], wire[cut:]) == (b"x", b"")


def test_every_single_edit_of_a_body_is_refused_or_read_alike() -> None:
    wire = b"5\r\nhello\r\n2;x=y\r\n\r\n\r\n0\r\nX-A: b\r\n\r\n"
    for at, removed, put in itertools.product(range(len(wire) + 1), range(3), (b"", *MUTATIONS)):
        chunked_body.run(b"\0" + wire[:at] + put + wire[at + removed :])
