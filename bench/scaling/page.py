"""Rendering docs/scaling.md from the measurements and the simulation; a pure function of bench/scaling.json."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from pathlib import Path
from string import Template
from typing import Final

from bench.report.figures import Spread
from bench.report.markdown import table_text
from bench.scaling import sizing
from bench.scaling.cold_cache import Demand, cold_start, hit_ratio, zipf
from bench.scaling.measurements import QUANTITIES, Measurements
from bench.scaling.protocol import NETWORK_SECONDS, Deployment, Outcome, simulate
from bench.scaling.sizing import Fleet

DOCUMENT: Final = Path(__file__).parent.parent.parent / "docs" / "scaling.md"
_TEXT: Final = Path(__file__).parent / "page.template"

REQUESTS: Final = 1_000_000.0
TOKENS: Final = 100_000_000
NODES: Final = (3, 10, 30, 50, 100, 300, 1000)
RATES: Final = (1.0, 10.0, 50.0)
CORES: Final = 8
GATE_MS: Final = 10.0
"""The bound of the p99 from COMMIT's return to the last acknowledgement."""
LEASES: Final = (2.0, 10.0, 30.0)
EXPONENT: Final = 0.9
_CHANGES: Final = 25
_MOST_CHANGES: Final = 250
_NODE_CHANGES: Final = 6_000
_QUIET_SECONDS: Final = 20.0
_WORKERS: Final = 4
CELL: Final = 30
MARGIN: Final = 0.02
USED: Final = 0.5
"""The share of a core that a sizing may use."""


def significant(value: float) -> str:
    """A number with two significant digits, for what was simulated or multiplied."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{significant(value / size)} {unit}"
    return f"{significant(value)} bytes"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if inf > seconds >= 2 * size:
            return f"{significant(seconds / size)} {unit}"
    return "more than a week" if seconds == inf else f"{significant(seconds)} s"


def costs_text(costs: Measurements) -> str:
    """Every measured quantity."""

    def number(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    def span(held: Spread) -> str:
        return f"{number(held.low)}–{number(held.high)}" if held.low != held.high else ""

    rows = []
    for name, quantity in QUANTITIES.items():
        held = costs.quantities[name]
        rows.append([quantity.what, f"{number(held.median)} {quantity.unit}", span(held)])
    return table_text(["what", "measured", "rounds"], rows)


def simulated(costs: Measurements, deployment: Deployment) -> Outcome:
    """Simulate as long as some hundreds of changes take, or some dozens for a large fleet, which costs more."""
    changes = min(_MOST_CHANGES, max(_CHANGES, _NODE_CHANGES // deployment.nodes))
    seconds = max(2.0, changes / deployment.changes_per_second) if deployment.changes_per_second else _QUIET_SECONDS
    return simulate(costs, deployment, seconds=seconds, warm_up=deployment.lease / 4)


def _acknowledged(costs: Measurements, nodes: int, rate: float) -> Outcome | None:
    """The simulation, or None if already the average work is more than the cores can do."""
    deployment = Deployment(nodes=nodes, changes_per_second=rate, cores=CORES)
    offered = nodes * (rate * _each_node(costs) + 5 / deployment.lease * costs["renewal_server"]) * 1e-6
    return simulated(costs, deployment) if offered < CORES else None


def _cell(outcome: Outcome | None) -> str:
    if outcome is None or not outcome.steady or outcome.acknowledged_p50 is None or outcome.acknowledged_p99 is None:
        return "**overloaded**"
    p50, p99 = significant(outcome.acknowledged_p50), significant(outcome.acknowledged_p99)
    text = f"{p50} / {p99}"
    return text if outcome.acknowledged_p99 <= GATE_MS else f"**{text}**"


def _steady_p99(outcome: Outcome | None) -> float | None:
    return outcome.acknowledged_p99 if outcome is not None and outcome.steady else None


def _busy(outcome: Outcome | None) -> str:
    return "100%" if outcome is None else f"{outcome.utilisation:.0%}"


class Tables:
    """Every table of the page, simulated once."""

    def __init__(self, costs: Measurements) -> None:
        self._costs = costs
        self.outcomes = {(nodes, rate): _acknowledged(costs, nodes, rate) for nodes in NODES for rate in RATES}

    def most_nodes(self, rate: float) -> int:
        """The largest simulated fleet whose acknowledgements are within the gate."""
        good = 0
        for nodes in NODES:
            p99 = _steady_p99(self.outcomes[nodes, rate])
            if p99 is None or p99 > GATE_MS:
                break
            good = nodes
        return good

    def acknowledgements(self) -> str:
        head = ["nodes", *(f"{rate:g}/s: p50 / p99, ms" for rate in RATES), f"busy at {RATES[1]:g}/s"]
        rows = [
            [f"{nodes:,}", *(_cell(self.outcomes[nodes, rate]) for rate in RATES),
             _busy(self.outcomes[nodes, RATES[1]])]
            for nodes in NODES
        ]  # fmt: skip
        return table_text(head, rows)

    @staticmethod
    def fleets_text(costs: Measurements) -> str:
        """The measured fleets beside the simulation of the same."""
        rows = []
        for seen in costs.fleets:
            made = fleet_outcome(costs, seen.nodes, seen.changes_per_second)
            assert made.acknowledged_p50 is not None
            assert made.commit_p50 is not None
            rows.append(
                [
                    f"{seen.nodes} nodes, {seen.changes_per_second:g} changes/s",
                    significant(seen.commit_p50), significant(made.commit_p50),
                    significant(seen.acknowledged_p50), significant(made.acknowledged_p50),
                    f"{seen.acknowledged_p50 / made.acknowledged_p50:.1f}",
                ]
            )  # fmt: skip
        head = ["fleet", "commit p50, ms", "simulated", "acknowledged p50, ms", "simulated", "ratio"]
        return table_text(head, rows)

    def leases(self) -> str:
        rows = []
        for lease in LEASES:
            for nodes in (100, 1000):
                quiet = Deployment(nodes=nodes, changes_per_second=0.0, lease=lease, cores=CORES)
                made = simulated(self._costs, quiet)
                rows.append(
                    [
                        f"{lease:g} s, {nodes:,} nodes",
                        significant(nodes * 5 / lease), f"{made.utilisation:.1%}", significant(made.syncs_per_second),
                        significant(made.renewal_p99), f"{lease * (1 + MARGIN):.2f} s",
                    ]
                )  # fmt: skip
        head = ["lease", "renewals/s", f"busy of {CORES} cores", "syncs/s", "renewal p99, ms", "wait for a frozen node"]
        return table_text(head, rows)

    def cells(self) -> str:
        """What would answer a revocation with 1,000 nodes, today and in the two ways that are not built."""
        rate, lease = RATES[1], 2.0
        whole = self.outcomes[1000, rate]
        heads = -(-1000 // CELL)
        made = simulated(self._costs, Deployment(nodes=heads, changes_per_second=rate, cores=CORES))
        assert made.acknowledged_p50 is not None
        assert made.acknowledged_p99 is not None
        hop = CELL * self._costs["head_client"] / 1e3 + 0.3
        rows = [
            ["a row for each node (built)", _cell(whole).strip("*"), _busy(whole)],
            [
                f"cells of {CELL} (not built)",
                f"{significant(made.acknowledged_p50 + hop)} / {significant(made.acknowledged_p99 + hop)}",
                _busy(made),
            ],
            [
                "waiting for a lease of 1 s (not built)",
                f"{significant(1e3 * (1 + MARGIN))} / {significant(1e3 * (1 + MARGIN))}",
                f"{self._renewing(1000, 1.0):.0%}",
            ],
            [
                f"waiting for a lease of {lease:g} s (not built)",
                f"{significant(lease * 1e3 * (1 + MARGIN))} / {significant(lease * 1e3 * (1 + MARGIN))}",
                f"{self._renewing(1000, lease):.0%}",
            ],
        ]
        return table_text(["1,000 nodes, 10 changes/s", "p50 / p99 after COMMIT, ms", f"busy of {CORES} cores"], rows)

    def _renewing(self, nodes: int, lease: float) -> float:
        return nodes * 5 / lease * self._costs["renewal_server"] * 1e-6 / CORES

    def parts(self) -> str:
        """The database's work for three fleets of a million requests a second."""
        fleets = big_fleets(self._costs)
        columns = [sizing.parts(self._costs, fleet) for fleet in fleets.values()]
        rows = []
        for lines in zip(*columns, strict=True):
            cells = [f"{significant(one.per_second)}/s, {significant(one.cores)} cores" for one in lines]
            rows.append([lines[0].what, *cells])
        totals = [sum(one.cores for one in column) for column in columns]
        logs = [sum(one.log for one in column) for column in columns]
        rows.append(["together", *(f"{significant(total)} cores" for total in totals)])
        rows.append(["log", *(f"{_bytes(log)}/s" for log in logs)])
        return table_text(["work of the database", *fleets], rows)

    def caches(self) -> str:
        """Steady misses and cold starts."""
        capacity = USED * CORES / (self._costs["grant_batch_server"] * 1e-6)
        rows = []
        for nodes, workers in ((1000, 2), (hosts(self._costs), _WORKERS)):
            for active in (1_000_000, 10_000_000, TOKENS):
                for affinity in (False, True):
                    total = nodes * workers
                    demand = Demand(
                        requests=REQUESTS, groups=zipf(active, EXPONENT), workers=total,
                        copies=workers if affinity else total,
                    )  # fmt: skip
                    found = hit_ratio(demand, sizing.CACHE_ENTRIES)
                    cold = cold_start(demand, capacity)
                    rows.append(
                        [
                            f"{nodes:,} × {workers} workers, {active // 1_000_000} million tokens, "
                            f"{'each to one node' if affinity else 'spread evenly'}",
                            significant(demand.tokens_for_each), f"{found:.1%}", significant(REQUESTS * (1 - found)),
                            _time(cold.overloaded),
                        ]
                    )  # fmt: skip
        head = ["fleet", "tokens for each cache", "found in it", "resolved/s", "queue after a start of all"]
        return table_text(head, rows)

    def memory(self) -> str:
        costs = self._costs
        rows = [
            ["a worker's cache, 200,000 grants (the default)", _bytes(sizing.CACHE_ENTRIES * costs["cached_grant"])],
            ["a worker's cache, 1,000,000 grants", _bytes(1e6 * costs["cached_grant"])],
            ["100 million tokens in the store, with usage and indexes", _bytes(sizing.stored_bytes(costs, TOKENS, 0))],
            ["1,000 million audit events in the store", _bytes(sizing.stored_bytes(costs, 0, 1e9))],
            ["one day of events at 1,000 a second", _bytes(sizing.stored_bytes(costs, 0, 86400 * 1000))],
            ["sessions of 50 nodes in the database", _bytes(50 * costs["session_bytes"])],
            ["sessions of 1,000 nodes in the database", _bytes(1000 * costs["session_bytes"])],
        ]
        return table_text(["what", "bytes"], rows)


def fleet_outcome(costs: Measurements, nodes: int, rate: float) -> Outcome:
    """The simulation of a measured fleet: one core for all nodes, one for the database, no network."""
    deployment = Deployment(nodes=nodes, changes_per_second=rate, cores=1, network=0.0, one_client=True)
    return simulate(costs, deployment, seconds=max(2.0, 50 / rate))


def hosts(costs: Measurements) -> int:
    """The hosts with four workers that serve a million requests a second, each of them busy half of the time."""
    return ceil(sizing.gateway_cores(costs, REQUESTS) / USED / _WORKERS)


def big_fleets(costs: Measurements) -> dict[str, Fleet]:
    """Three fleets that serve a million requests a second, with 10 million tokens in use and 10 changes a second."""
    groups = zipf(10_000_000, EXPONENT)

    def fleet(nodes: int, workers: int, *, affinity: bool) -> Fleet:
        return Fleet(
            nodes=nodes, workers=workers, requests=REQUESTS, groups=groups, affinity=affinity, changes=RATES[1]
        )

    return {
        "1,000 nodes × 2, spread evenly": fleet(1000, 2, affinity=False),
        "1,000 nodes × 2, each token to one node": fleet(1000, 2, affinity=True),
        f"{hosts(costs)} nodes × {_WORKERS}, each token to one node": fleet(hosts(costs), _WORKERS, affinity=True),
    }


def _machine(costs: Measurements) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in costs.machine.items())


def render(costs: Measurements) -> str:
    """The whole page."""
    tables = Tables(costs)
    fleets = list(big_fleets(costs).values())
    totals = [sum(one.cores for one in sizing.parts(costs, fleet)) for fleet in fleets]
    cores = sizing.gateway_cores(costs, REQUESTS)
    values = {
        "taken": costs.taken,
        "machine": _machine(costs),
        "costs": costs_text(costs),
        "acknowledgements": tables.acknowledgements(),
        "fleets": tables.fleets_text(costs),
        "leases": tables.leases(),
        "cells": tables.cells(),
        "parts": tables.parts(),
        "caches": tables.caches(),
        "memory": tables.memory(),
        "cores": str(CORES),
        "gate": f"{GATE_MS:g}",
        "gateway_cpu": significant(costs["gateway_cpu"]),
        "gateway_cores": significant(cores),
        "gateway_half": significant(cores / USED),
        "most_1": _most(tables.most_nodes(RATES[0])),
        "most_10": _most(tables.most_nodes(RATES[1])),
        "most_50": _most(tables.most_nodes(RATES[2])),
        "events_ceiling": significant(sizing.events_ceiling(costs)),
        "changes_ceiling": significant(sizing.changes_ceiling(costs, NETWORK_SECONDS)),
        "changes_1": significant(costs["changes_1"]),
        "changes_8": significant(costs["changes_8"]),
        "hosts": str(hosts(costs)),
        "rates": " and ".join(f"{rate:g}" for rate in RATES[1:]),
        "fastest": f"{RATES[2]:g}",
        "exponent": f"{EXPONENT:g}",
        "resolve_capacity": significant(USED * CORES / (costs["grant_batch_server"] * 1e-6)),
        "total_spread": significant(totals[0]),
        "total_few": significant(totals[2]),
        "token_bytes": significant(costs["token_bytes"] + costs["usage_bytes"]),
        "store": _bytes(sizing.stored_bytes(costs, TOKENS, 0)),
        "session": _bytes(costs["session_bytes"]),
        "recorded": f"{fleets[0].recorded:.0%}",
        "node_change": significant(_each_node(costs)),
    }
    return Template(_TEXT.read_text()).substitute(values)


def _each_node(costs: Measurements) -> float:
    """Microseconds of the database for each node and change."""
    names: Sequence[str] = ("notify_sender", "notify_receiver", "head_server", "acknowledgement_server", "fetch_server")
    return sum(costs[name] for name in names)


def _most(nodes: int) -> str:
    return f"{nodes:,}" if nodes else "none of these"


def write(costs: Measurements, document: Path = DOCUMENT) -> None:
    """Write the page."""
    document.write_text(render(costs))
