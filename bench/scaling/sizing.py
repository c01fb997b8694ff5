"""What each part of a large deployment costs the database: demand times measured cost.

These are averages, by multiplication; ``protocol`` and ``cold_cache`` simulate what averages cannot show, the waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Final

from bench.scaling.cold_cache import Demand, Group, hit_ratio
from bench.scaling.measurements import Measurements
from bench.scaling.protocol import RENEWALS, TRIPS

SUMS_SECONDS: Final = 5.0
"""How often an authority writes uses (``authority.workers.recorder``)."""
CACHE_ENTRIES: Final = 200_000
"""The default of ``cache.entries``."""
_US: Final = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """A deployment under load."""

    nodes: int
    workers: int
    """Of each node."""
    requests: float
    """A second, of all nodes."""
    groups: Sequence[Group]
    """The tokens in use."""
    affinity: bool
    """Whether the ingress sends every token to the same node."""
    changes: float
    """A second."""
    lease: float = 2.0
    recorded: float = 0.05
    """The share of requests that leave an event: writes and refusals, with the default ``audit.requests: writes``."""
    entries: int = CACHE_ENTRIES

    @property
    def demand(self) -> Demand:
        workers = self.nodes * self.workers
        return Demand(
            requests=self.requests,
            groups=self.groups,
            workers=workers,
            copies=self.workers if self.affinity else workers,
        )

    @property
    def uses(self) -> float:
        """Rows of usage a second: the different tokens of each node in the time between two writes."""
        places = 1 if self.affinity else self.nodes
        rate = self.requests / places * SUMS_SECONDS
        return places * sum(group.tokens * (1 - exp(-rate * group.share)) for group in self.groups) / SUMS_SECONDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One kind of work of the database."""

    what: str
    per_second: float
    cores: float
    """Of the database, on average."""
    log: float
    """Bytes of write-ahead log a second."""


def parts(costs: Measurements, fleet: Fleet) -> list[Part]:
    """Every kind of work, in the order of the page."""
    renewals = fleet.nodes * RENEWALS / fleet.lease
    told = fleet.nodes * fleet.changes
    misses = fleet.requests * (1 - hit_ratio(fleet.demand, fleet.entries))
    events = fleet.requests * fleet.recorded

    def part(what: str, rate: float, cost: float, log: float = 0.0) -> Part:
        return Part(what=what, per_second=rate, cores=rate * cost * _US, log=rate * log)

    node = costs["head_server"] + costs["acknowledgement_server"]
    return [
        part("renewals of leases", renewals, costs["renewal_server"], costs["renewal_log"]),
        part("changes", fleet.changes, costs["change_server"], costs["change_log"]),
        part("notifications", told, costs["notify_sender"] + costs["notify_receiver"]),
        part("heads read and acknowledged", told, node, costs["acknowledgement_log"]),
        part("keys fetched", told, costs["fetch_server"]),
        part("grants resolved", misses, costs["grant_batch_server"]),
        part("uses added", fleet.uses, costs["use_server"], costs["use_log"]),
        part("events of requests", events, costs["event_server"], costs["event_log"]),
    ]


def events_ceiling(costs: Measurements) -> float:
    """Events a second that one chain takes: batches are written one after the other, however many cores there are."""
    return 1 / (costs["event_wall"] * _US)


def changes_ceiling(costs: Measurements, network: float) -> float:
    """Changes a second if each begins when the one before releases the lock; ``network``: seconds of a round trip."""
    held = costs["change_server"] + costs["change_client"] + costs["disk_sync"]
    return 1 / (held * _US + TRIPS * network)


def gateway_cores(costs: Measurements, requests: float) -> float:
    """Cores of all gateways that are busy with so many requests a second."""
    return requests * costs["gateway_cpu"] * _US


def stored_bytes(costs: Measurements, tokens: float, events: float) -> float:
    """Bytes of so many tokens, all of them used, and so many events, with their indexes."""
    return tokens * (costs["token_bytes"] + costs["usage_bytes"]) + events * costs["event_bytes"]
