"""Caches of grants under a Zipf distribution: the misses of a steady state, and of a fleet that starts with nothing.

Tokens are used with frequencies proportional to ``rank ** -exponent``. A cache holds the most recently used grants of
one worker. It is one of ``copies`` that see the same tokens: all workers of the fleet where an ingress spreads requests
evenly, or the workers of one node where it sends every token to the same node.

* Steady state: Che's approximation of LRU. A token is in the cache if it was used within a time that is the same for
  all tokens, and that follows from the number of entries.
* Cold start: each first use of a token by a cache is a question to the database, which answers so many a second. As
  long as more are asked, each waits, and later requests with that token join it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf
from typing import Final

_EXACT: Final = 100
"""Ranks that are computed one by one; beyond them in groups, each of which spans a twentieth of its first rank."""
_GROWTH: Final = 1.05
_STEP: Final = 0.01
"""Of the simulated time: at least so many seconds, and so large a share of the time that has passed."""
_LIMIT: Final = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Group:
    """``tokens`` tokens, each of which gets ``share`` of all requests."""

    tokens: float
    share: float


def zipf(active: int, exponent: float) -> list[Group]:
    """The tokens in use, in groups of almost equal frequency. The shares of all tokens add up to 1."""
    groups: list[tuple[float, float]] = []
    rank = 1.0
    while rank <= active:
        size = 1.0 if rank <= _EXACT else min(float(int(rank * (_GROWTH - 1))), active - rank + 1)
        groups.append((size, (rank + (size - 1) / 2) ** -exponent))
        rank += size
    total = sum(size * weight for size, weight in groups)
    return [Group(size, weight / total) for size, weight in groups]


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """Requests a second of the whole fleet, over tokens, spread over caches."""

    requests: float
    groups: Sequence[Group]
    workers: int
    """All workers, each with a cache of its own."""
    copies: int
    """The number of caches that see each token."""

    @property
    def tokens_for_each(self) -> float:
        """The number of tokens in use that one cache sees."""
        return sum(group.tokens for group in self.groups) * self.copies / self.workers


def hit_ratio(demand: Demand, entries: int) -> float:
    """The share of requests that find their grant in a cache of so many entries, in the steady state."""
    if demand.tokens_for_each <= entries:
        return 1.0
    time = _characteristic_time(demand, entries)
    rate = demand.requests / demand.copies
    return sum(group.tokens * group.share * (1 - exp(-rate * group.share * time)) for group in demand.groups)


def _characteristic_time(demand: Demand, entries: int) -> float:
    """The time since its last use after which a token is no longer in the cache, in seconds."""
    rate = demand.requests / demand.copies
    apart = demand.workers / demand.copies

    def held(time: float) -> float:
        return sum(group.tokens * (1 - exp(-rate * group.share * time)) for group in demand.groups) / apart

    low, high = 0.0, 1.0
    while held(high) < entries:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if held(middle) < entries else (low, middle)
    return high


@dataclass(frozen=True, kw_only=True, slots=True)
class ColdStart:
    """A fleet that starts with empty caches. Times in seconds; ``inf`` if not within the simulated time."""

    overloaded: float
    """How long more grants are asked for than the database resolves."""
    warm: float
    """Until 99 of 100 requests find their grant."""
    resolved: float
    """Grants that the database resolved until then."""
    waiting: float
    """The largest number of questions that wait."""


def cold_start(demand: Demand, capacity: float, *, limit: float = _LIMIT) -> ColdStart:
    """Start all caches of the fleet at once, on a database that resolves ``capacity`` grants a second.

    A cache is taken to have room for every token that it sees.
    """
    rate = demand.requests / demand.copies
    # Of each group the share of pairs (cache, token) that were never asked for; the others wait, or are cached.
    unasked = [1.0] * len(demand.groups)
    waiting = resolved = most = overloaded = now = 0.0
    while now < limit:
        dt = max(_STEP, now * _STEP)
        now += dt
        asked = 0.0
        for place, group in enumerate(demand.groups):
            left = unasked[place] * exp(-rate * group.share * dt)
            asked += group.tokens * demand.copies * (unasked[place] - left)
            unasked[place] = left
        answered = min(waiting + asked, capacity * dt)
        waiting += asked - answered
        resolved += answered
        most = max(most, waiting)
        # Less than a tenth of a second of work is no queue.
        if waiting > capacity / 10:
            overloaded = now
        missing = sum(group.tokens * group.share * left for group, left in zip(demand.groups, unasked, strict=True))
        if missing < 0.01 and waiting <= capacity / 10:
            return ColdStart(overloaded=overloaded, warm=now, resolved=resolved, waiting=most)
    return ColdStart(overloaded=inf if waiting else overloaded, warm=inf, resolved=resolved, waiting=most)
