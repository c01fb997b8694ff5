"""Threat model §8: no client input makes the log large or logs an error, in both builds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count

import pytest

from tests.support.errors import error_in
from tests.support.gateway import Patgate
from tests.support.pool import Pool
from tests.support.quotas import flood
from tests.support.recorder import Recorder

POST = b"POST /public/a HTTP/1.1\r\nHost: gateway\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
FLOOD = 1500
LIMIT = 1000
#: Each in one segment, so that head and body are parsed in one call.
MALFORMED = {
    "a chunk size that is none": CHUNKED + b"\r\nZ\r\n",
    "a chunk that ends in nothing": CHUNKED + b"\r\n1\r\nxZ\r\n",
    "a malformed trailer": CHUNKED + b"\r\n0\r\n: x\r\n\r\n",
    "a malformed chunk where leave was asked to send": CHUNKED + b"Expect: 100-continue\r\n\r\nZ\r\n",
    "chunks beyond the limit": CHUNKED + b"\r\n7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n",
    "a length beyond the limit": POST + b"Content-Length: 2000\r\n\r\n" + b"x" * 2000,
    "no head": b"\0\r\n\r\n",
}


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    config = {
        "upstreams": {"app": {"servers": [backend.url]}},
        "routes": [{"path": "/public/**", "upstream": "app", "access": "public"}],
        "limits": {"body": LIMIT},
    }
    with gateways.lend(config) as gateway:
        yield gateway


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_message_in_one_segment_is_refused_and_no_error_of_ours(
    data: bytes, node: Patgate, recorder: Recorder
) -> None:
    for _ in range(3):
        with node.connect() as connection:
            assert connection.exchange(data, method="POST").status in (400, 413)
            assert connection.ended()
    with node.connect() as connection:
        assert connection.request("GET", "/public/afterwards").status == 200
    assert [line for line in node.log.splitlines() if error_in(line)] == []


def test_a_flood_of_malformed_bodies_writes_a_bounded_log(node: Patgate, recorder: Recorder) -> None:
    """At most a megabyte a minute, of which a quarter at once; the number of omitted lines is logged."""
    log = node.directory / "patgate.log"
    size, began = log.stat().st_size, time.monotonic()
    numbers = count()

    def refused() -> None:
        with node.connect() as connection:
            data = CHUNKED + b"X: %d\r\n\r\nZ\r\n" % next(numbers)
            assert connection.exchange(data, method="POST").status == 400

    flood(node, refused, at_once=FLOOD)
    minutes = (time.monotonic() - began) / 60
    assert log.stat().st_size - size <= 250_000 + 750_000 * minutes
