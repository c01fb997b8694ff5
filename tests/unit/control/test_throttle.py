"""Throttling of failures by address, with a clock that the test sets."""

from __future__ import annotations

import pytest

from proxy.control.throttle import ADDRESSES, Throttle, site


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_ten_failures_at_once_and_then_one_a_second(clock: Clock) -> None:
    throttle = Throttle(clock)
    assert [throttle.take("192.0.2.1") for _ in range(12)] == [True] * 10 + [False] * 2
    assert throttle.wait("192.0.2.1") == 1
    clock.now += 0.9
    assert not throttle.take("192.0.2.1")
    clock.now += 0.2
    assert throttle.take("192.0.2.1")
    assert not throttle.take("192.0.2.1")
    clock.now += 3600
    assert [throttle.take("192.0.2.1") for _ in range(11)] == [True] * 10 + [False]


def test_a_failure_can_be_given_back(clock: Clock) -> None:
    throttle = Throttle(clock)
    for _ in range(100):
        assert throttle.take("192.0.2.1")
        throttle.give_back("192.0.2.1")
    assert len(throttle) == 0


def test_addresses_are_counted_separately_and_an_ipv6_site_as_one(clock: Clock) -> None:
    throttle = Throttle(clock, at_once=1)
    assert throttle.take("192.0.2.1")
    assert throttle.take("192.0.2.2")
    assert throttle.take("2001:db8:0:1::1")
    assert not throttle.take("2001:db8:0:1:ffff::2")
    assert throttle.take("2001:db8:0:2::1")
    assert not throttle.take("::ffff:192.0.2.1")


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_an_address_is_counted_under_its_site(address: str, named: str) -> None:
    assert site(address) == named


def test_memory_is_bounded_and_the_oldest_address_is_dropped(clock: Clock) -> None:
    throttle = Throttle(clock, at_once=1)
    for number in range(ADDRESSES + 100):
        assert throttle.take(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(throttle) == ADDRESSES
    assert not throttle.take(f"10.0.{(ADDRESSES + 99) >> 8 & 255}.{(ADDRESSES + 99) & 255}")


def test_a_clock_that_stops_or_goes_back_refills_nothing(clock: Clock) -> None:
    throttle = Throttle(clock, at_once=1)
    assert throttle.take("192.0.2.1")
    clock.now -= 100
    assert not throttle.take("192.0.2.1")


def test_the_least_recently_used_address_is_dropped_not_the_oldest(clock: Clock) -> None:
    throttle = Throttle(clock, at_once=1)
    addresses = [f"10.0.{number >> 8}.{number & 255}" for number in range(ADDRESSES)]
    assert all([throttle.take(address) for address in addresses])
    assert not throttle.take(addresses[0]), "its one failure is taken, and it was touched again"
    assert throttle.take("192.0.2.1")
    assert not throttle.take(addresses[0]), "an address that keeps failing is not dropped"
    assert not throttle.take(addresses[2])
    assert not throttle.take("192.0.2.1")
    assert throttle.take(addresses[1]), "this address was used least recently"
    assert len(throttle) == ADDRESSES
