"""The flood of wrong secrets comes at its rate, never with the right token, and only counts if it is refused."""

from __future__ import annotations

import re

import pytest

from bench.errors import BenchError
from bench.load.workload import mint
from bench.scenarios import wrong_secrets
from bench.testbed import received
from tests.support.process import HANGS_SECONDS
from tests.unit.bench.serving import ANSWER, REFUSAL, running, seconds_until, serving


def test_a_flood_keeps_its_rate_and_ends_on_request() -> None:
    (known,) = mint(1)
    with (
        serving(REFUSAL) as server,
        running(lambda pipe: wrong_secrets.flood(pipe, server.port, known, 500, 1)) as pipe,
    ):
        received(pipe, HANGS_SECONDS, "the flood started")
        seconds_until(lambda: sum(map(len, server.received.values())) > 20_000)
        pipe.send("stop")
        report = received(pipe, HANGS_SECONDS, "the flood ended")
    assert report["sent"] == sum(data.count(b"\r\n\r\n") for data in server.received.values())
    assert report["sent"] / report["seconds"] <= 510
    tokens = set(re.findall(rb"Bearer (\S+)", b"".join(server.received.values())))
    assert len(tokens) == report["sent"]
    assert known.encode() not in tokens


def test_a_flood_that_is_accepted_gives_no_figure() -> None:
    (known,) = mint(1)
    with serving(ANSWER) as server, running(lambda pipe: wrong_secrets.flood(pipe, server.port, known, 100, 1)) as pipe:
        received(pipe, HANGS_SECONDS, "the flood started")
        seconds_until(lambda: bool(server.received))
        pipe.send("stop")
        with pytest.raises(BenchError):
            received(pipe, HANGS_SECONDS, "the flood ended")
