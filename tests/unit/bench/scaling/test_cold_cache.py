"""The caches of a fleet, compared with an LRU cache that is really run, and with closed forms."""

from __future__ import annotations

import random
from collections import OrderedDict
from itertools import accumulate
from math import inf

import pytest

from bench.scaling.cold_cache import Demand, Group, cold_start, hit_ratio, zipf


def demand(groups: list[Group], *, requests: float = 1000.0, workers: int = 1, copies: int = 1) -> Demand:
    return Demand(requests=requests, groups=groups, workers=workers, copies=copies)


@pytest.mark.parametrize(("active", "exponent"), [(50, 1.0), (5000, 0.8), (1_000_000, 1.0)])
def test_groups_of_tokens_have_the_shares_of_their_ranks(active: int, exponent: float) -> None:
    groups = zipf(active, exponent)
    assert sum(group.tokens for group in groups) == pytest.approx(active)
    assert sum(group.tokens * group.share for group in groups) == pytest.approx(1)
    exact = sum(rank**-exponent for rank in range(1, active + 1))
    assert groups[0].share == pytest.approx(1 / exact, rel=0.01)
    assert groups[9].share == pytest.approx(10**-exponent / exact, rel=0.01)


@pytest.mark.parametrize(("entries", "exponent"), [(100, 1.0), (500, 0.8)])
def test_the_steady_share_of_hits_is_that_of_a_real_lru_cache(entries: int, exponent: float) -> None:
    active, requests = 3000, 150_000
    weights = list(accumulate(rank**-exponent for rank in range(1, active + 1)))
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for turn, token in enumerate(random.Random(3).choices(range(active), cum_weights=weights, k=requests)):
        if token in cache:
            cache.move_to_end(token)
            hits += turn >= requests // 3
        else:
            cache[token] = None
            if len(cache) > entries:
                cache.popitem(last=False)
    real = hits / (requests - requests // 3)
    assert hit_ratio(demand(zipf(active, exponent)), entries) == pytest.approx(real, abs=0.02)


def test_a_cache_with_room_for_every_token_that_it_sees_always_hits() -> None:
    groups = zipf(10_000, 1.0)
    assert hit_ratio(demand(groups), 10_000) == 1
    assert hit_ratio(demand(groups), 9_000) < 1
    # Ten workers, and every token is sent to one of them.
    assert hit_ratio(demand(groups, workers=10, copies=1), 1_000) == 1
    assert hit_ratio(demand(groups, workers=10, copies=10), 1_000) < 1


def test_workers_that_all_see_every_token_hit_as_one_of_them_would() -> None:
    groups = zipf(10_000, 0.9)
    alone = hit_ratio(demand(groups, requests=1000.0), 500)
    assert hit_ratio(demand(groups, requests=50_000.0, workers=50, copies=50), 500) == pytest.approx(alone)


def test_a_cold_start_on_a_fast_database_never_queues() -> None:
    groups = [Group(tokens=1000, share=1 / 1000)]
    started = cold_start(demand(groups, requests=1000.0), capacity=100_000.0)
    assert started.overloaded == 0
    # A token is unseen after t seconds with probability e^-t; 1 % after 4.6 s.
    assert started.warm == pytest.approx(4.6, abs=0.1)
    assert started.resolved == pytest.approx(990, rel=0.01)


def test_a_cold_start_on_a_slow_database_takes_the_time_to_resolve_each_grant_once() -> None:
    groups = [Group(tokens=100_000, share=1 / 100_000)]
    started = cold_start(demand(groups, requests=1_000_000.0), capacity=1_000.0)
    assert started.overloaded == pytest.approx(100, rel=0.02)
    assert started.warm == pytest.approx(100, rel=0.02)
    assert started.waiting == pytest.approx(99_000, rel=0.02)


def test_every_cache_resolves_each_grant_for_itself() -> None:
    groups = [Group(tokens=10_000, share=1 / 10_000)]
    one = cold_start(demand(groups, requests=1e6, workers=8, copies=1), capacity=1_000.0)
    all_ = cold_start(demand(groups, requests=1e6, workers=8, copies=8), capacity=1_000.0)
    assert all_.overloaded == pytest.approx(8 * one.overloaded, rel=0.03)


def test_a_queue_that_does_not_end_in_the_simulated_time_is_said_to_be_endless() -> None:
    groups = [Group(tokens=1e9, share=1e-9)]
    started = cold_start(demand(groups, requests=1e6), capacity=10.0, limit=100.0)
    assert started.overloaded == inf
    assert started.warm == inf
