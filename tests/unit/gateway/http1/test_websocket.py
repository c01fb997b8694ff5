"""A tunnel that follows frame boundaries: bytes pass unchanged, and a Close is inserted between two frames."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.gateway.http1.websocket import WebSocketBody
from tests.support.websocket import BINARY, CLOSE, GOING_AWAY, TEXT, frame, read_frame
from tests.unit.gateway.transports import Transport

SIZES = (0, 1, 125, 126, 127, 65535, 65536, 70000)


def fed(body: WebSocketBody, data: bytes, cuts: list[int]) -> bytes:
    """The output of ``body`` for ``data``, cut at these places."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    out = b""
    for begin, end in pairwise(places):
        if begin < end:
            pieces, rest = body.feed(data[begin:end])
            assert rest == b""
            out += b"".join(pieces)
    return out


frames = st.lists(
    st.builds(
        frame,
        st.sampled_from([TEXT, BINARY, 0x0, 0x9, 0xA, CLOSE]),
        st.sampled_from(SIZES).map(lambda size: b"p" * size),
        masked=st.booleans(),
        final=st.booleans(),
    ),
    max_size=5,
)
cuts = st.lists(st.integers(min_value=0, max_value=300_000), max_size=8)


@given(frames, cuts)
def test_bytes_pass_unchanged_in_any_segmentation(sent: list[bytes], places: list[int]) -> None:
    whole = b"".join(sent)
    body = WebSocketBody()
    assert fed(body, whole, places) == whole
    assert not body.close_sent
    assert body.sender_closed == any(each[0] & 0x0F == CLOSE for each in sent)


@given(frames, frames, cuts, st.integers(min_value=0, max_value=300_000), st.booleans())
def test_a_close_is_inserted_at_the_end_of_the_current_frame_and_nothing_follows(
    before: list[bytes], after: list[bytes], places: list[int], when: int, masked: bool
) -> None:
    whole = b"".join([*before, *after])
    when %= len(whole) + 1
    ends = [0]
    for each in (*before, *after):
        ends.append(ends[-1] + len(each))
    boundary = next(end for end in ends if end >= when)
    body, transport = WebSocketBody(), Transport()
    out = fed(body, whole[:when], places)
    body.send_close(transport, masked=masked)
    out += bytes(transport.written)
    out += fed(body, whole[when:], places)
    assert out[:boundary] == whole[:boundary]
    close = out[boundary:]
    at = 0

    def exactly(count: int) -> bytes:
        nonlocal at
        at += count
        return close[at - count : at]

    frames_until = [each for each, end in zip((*before, *after), ends[1:], strict=True) if end <= boundary]
    assert body.close_sent
    if not any(each[0] & 0x0F == CLOSE for each in frames_until):
        assert read_frame(exactly) == (CLOSE, GOING_AWAY, masked)
    assert close[at:] == b"", "nothing follows a Close, neither ours nor the sender's"


@given(st.binary(max_size=400), cuts)
def test_a_stream_without_websocket_frames_passes_too(data: bytes, places: list[int]) -> None:
    assert fed(WebSocketBody(), data, places) == data


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_close_of_the_sender_is_not_followed_by_another(cut: int) -> None:
    body, transport = WebSocketBody(), Transport()
    close = frame(CLOSE, GOING_AWAY)
    assert fed(body, close, [cut]) == close
    body.send_close(transport, masked=False)
    assert (bytes(transport.written), body.sender_closed, body.close_sent) == (b"", True, True)
    assert body.feed(frame(TEXT, b"more")) == ([], b"")


def test_a_close_is_sent_once() -> None:
    body, transport = WebSocketBody(), Transport()
    assert body.send_close(transport, masked=False) == 4
    assert body.send_close(transport, masked=False) == 0
    assert bytes(transport.written) == frame(CLOSE, GOING_AWAY)
