"""Idle and slow clients send what their scenario says, and report how many were cut off."""

from __future__ import annotations

import time

from bench.load.held_connections import Group, Manner, hold_connections
from bench.testbed import received
from tests.support.process import HANGS_SECONDS
from tests.unit.bench.serving import ANSWER, running, seconds_until, serving


def test_idle_clients_send_one_request_each_and_stay_connected() -> None:
    group = Group(manner=Manner.IDLE, number=250, openings=[b"GET /a HTTP/1.1\r\n\r\n", b"GET /b HTTP/1.1\r\n\r\n"])
    with serving(ANSWER) as server, running(lambda pipe: hold_connections(pipe, server.port, [group])) as pipe:
        assert received(pipe, HANGS_SECONDS, "all are connected")["answered"] == 250
        pipe.send("state")
        state = received(pipe, HANGS_SECONDS, "the state")
        assert (state["answered"], state["cut_off"]) == (250, 0)
    requests = list(server.received.values())
    assert requests.count(group.openings[0]) == requests.count(group.openings[1]) == 125


def test_slow_clients_send_a_byte_at_a_time() -> None:
    group = Group(manner=Manner.SLOW, number=10, openings=[b"GET /a HTTP/1.1\r\nX: "], pace=0.1)
    began = time.monotonic()
    with serving(ANSWER) as server, running(lambda pipe: hold_connections(pipe, server.port, [group])) as pipe:
        received(pipe, HANGS_SECONDS, "all are connected")
        seconds_until(lambda: sum(b"X: aaa" in data for data in list(server.received.values())) == 10)
        assert time.monotonic() - began > 0.2


def test_a_client_that_is_cut_off_reconnects() -> None:
    group = Group(manner=Manner.SLOW, number=3, openings=[b"GET /a HTTP/1.1\r\nX: "], pace=0.1)
    with (
        serving(b"", closing=True) as server,
        running(lambda pipe: hold_connections(pipe, server.port, [group])) as pipe,
    ):
        received(pipe, HANGS_SECONDS, "all are connected")
        seconds_until(lambda: len(server.received) > 9)
        pipe.send("state")
        assert received(pipe, HANGS_SECONDS, "the state")["cut_off"] >= 6
