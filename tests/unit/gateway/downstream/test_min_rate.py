"""Minimum rates of request bodies and of reading answers."""

from __future__ import annotations

from proxy.gateway.downstream.min_rate import Pace

SECOND = 1_000_000_000
IDLE = 30 * SECOND


def test_a_body_gets_the_idle_time_and_the_time_that_the_slowest_client_takes() -> None:
    pace = Pace()
    assert pace.body_deadline(0, 100 * SECOND, idle_ns=IDLE, rate=100) == 130 * SECOND
    assert pace.body_deadline(1, 120 * SECOND, idle_ns=IDLE, rate=100) == 130 * SECOND + SECOND // 100
    assert pace.body_deadline(2000, 129 * SECOND, idle_ns=IDLE, rate=100) == 150 * SECOND
    assert pace.body_deadline(10_000, 140 * SECOND, idle_ns=IDLE, rate=100) == 170 * SECOND


def test_without_a_rate_each_part_extends_the_deadline_by_the_idle_time() -> None:
    pace = Pace()
    for now in (0, 29, 58, 87):
        assert pace.body_deadline(1, now * SECOND, idle_ns=IDLE, rate=0) == (now + 30) * SECOND


def test_time_in_which_the_gateway_did_not_read_does_not_count() -> None:
    pace = Pace()
    pace.body_deadline(0, SECOND, idle_ns=IDLE, rate=100)
    assert pace.paused(2 * SECOND)
    assert pace.resumed(1002 * SECOND)
    assert pace.body_deadline(0, 1002 * SECOND, idle_ns=IDLE, rate=100) == 1031 * SECOND


def test_every_body_is_measured_on_its_own() -> None:
    pace = Pace()
    pace.body_deadline(0, SECOND, idle_ns=IDLE, rate=100)
    pace.body_ended()
    assert not pace.paused(2 * SECOND)
    assert not pace.resumed(3 * SECOND)
    assert pace.body_deadline(0, 500 * SECOND, idle_ns=IDLE, rate=100) == 530 * SECOND


def test_a_reader_must_keep_the_rate_between_two_checks() -> None:
    pace = Pace()
    assert not pace.fetches(1000, SECOND, rate=100), "nothing was measured before"
    assert pace.fetches(900, 2 * SECOND, rate=100)
    assert not pace.fetches(801, 3 * SECOND, rate=100)
    assert pace.fetches(701, 4 * SECOND, rate=100)
    assert not pace.fetches(701, 5 * SECOND, rate=0), "at any rate, something must be read"
    assert pace.fetches(700, 6 * SECOND, rate=0)
    pace.left_unread(0, 0)
    assert not pace.fetches(600, 7 * SECOND, rate=0)
