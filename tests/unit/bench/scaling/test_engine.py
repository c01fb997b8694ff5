"""The simulation's stations, lock and disk, compared with the closed forms of queueing theory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import factorial

import pytest

from bench.scaling.engine import Disk, Simulator, Station, Turns

SERVICE = 1.0


def mean_time(*, load: float, servers: int = 1, variability: float, jobs: int = 120_000, seed: int = 7) -> float:
    """The mean time in a station (waiting and service) of jobs that arrive at random, with a service time of 1."""
    simulator = Simulator(seed)
    station = Station(simulator, servers, variability=variability)
    rate = load * servers / SERVICE
    times: list[float] = []

    def arrive() -> None:
        began = simulator.now
        station.serve(SERVICE, lambda: times.append(simulator.now - began))
        if len(times) < jobs:
            simulator.after(simulator.random.expovariate(rate), arrive)

    arrive()
    simulator.run(jobs * 2 / rate)
    settled = times[jobs // 10 : jobs]
    return sum(settled) / len(settled)


def erlang_c(servers: int, load: float) -> float:
    """The probability that a job of an M/M/c queue has to wait."""
    offered = load * servers
    waiting = offered**servers / factorial(servers) / (1 - load)
    return waiting / (sum(offered**k / factorial(k) for k in range(servers)) + waiting)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_with_exponential_times_is_an_m_m_1_queue(load: float) -> None:
    assert mean_time(load=load, variability=1) == pytest.approx(SERVICE / (1 - load), rel=0.05)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_with_fixed_times_is_an_m_d_1_queue(load: float) -> None:
    """Pollaczek and Khinchine: half of the wait of exponential times."""
    assert mean_time(load=load, variability=0) == pytest.approx(SERVICE + load / (2 * (1 - load)), rel=0.04)


def test_times_between_fixed_and_exponential_have_the_wait_of_their_variance() -> None:
    """Pollaczek and Khinchine for a squared coefficient of variation of a quarter."""
    expected = SERVICE + 0.7 / (1 - 0.7) * (1 + 0.25) / 2
    assert mean_time(load=0.7, variability=0.5) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("servers", "load"), [(2, 0.7), (8, 0.8)])
def test_several_servers_are_an_m_m_c_queue(servers: int, load: float) -> None:
    expected = SERVICE + erlang_c(servers, load) * SERVICE / (servers * (1 - load))
    assert mean_time(load=load, servers=servers, variability=1) == pytest.approx(expected, rel=0.04)


def test_a_station_is_as_busy_as_the_work_that_it_gets() -> None:
    simulator = Simulator(1)
    station = Station(simulator, 4, variability=0)
    ended: list[float] = []
    for _ in range(6):
        station.serve(2.0, lambda: ended.append(simulator.now))
    assert station.waiting == 2
    simulator.run(8.0)
    assert ended == [2.0] * 4 + [4.0] * 2
    assert station.utilisation(0.0, 0.0) == pytest.approx(12.0 / (4 * 8.0))


def test_jobs_begin_in_the_order_of_their_arrival_when_a_server_is_free() -> None:
    simulator = Simulator(1)
    station = Station(simulator, 1, variability=0)
    began: list[tuple[int, float]] = []

    def job(name: int) -> Callable[[], None]:
        return lambda: began.append((name, simulator.now))

    for name in range(3):
        station.serve(1.5, lambda: None, job(name))
    simulator.run(10.0)
    assert began == [(0, 0.0), (1, 1.5), (2, 3.0)]


def test_turns_are_taken_in_the_order_of_asking() -> None:
    turns, order = Turns(), []

    def taker(name: int) -> Callable[[], None]:
        return lambda: order.append(name)

    for name in range(3):
        turns.take(taker(name))
    assert order == [0]
    turns.give_back()
    turns.give_back()
    assert order == [0, 1, 2]
    turns.give_back()
    turns.take(taker(3))
    assert order == [0, 1, 2, 3]


def test_a_sync_serves_those_who_asked_before_it_began_and_no_others() -> None:
    simulator = Simulator(1)
    disk = Disk(simulator, 1.0, variability=0)
    served: list[tuple[str, float]] = []

    def ask(name: str) -> Callable[[], None]:
        return lambda: disk.sync(lambda: served.append((name, simulator.now)))

    for at, name in ((0.0, "first"), (0.1, "second"), (0.9, "third"), (5.0, "alone")):
        simulator.after(at, ask(name))
    simulator.run(10.0)
    assert served == [("first", 1.0), ("second", 2.0), ("third", 2.0), ("alone", 6.0)]
    assert disk.syncs == 3


def test_events_happen_in_the_order_of_their_times_and_none_after_the_end() -> None:
    simulator = Simulator(1)
    seen: list[float] = []
    for delay in (3.0, 1.0, 2.0, 9.0):
        simulator.after(delay, lambda: seen.append(simulator.now))
    simulator.run(5.0)
    assert seen == [1.0, 2.0, 3.0]
    assert all(before <= after for before, after in pairwise(seen))
    assert simulator.now == 5.0
