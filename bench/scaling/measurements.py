"""The measured costs: their names, units, plausible ranges, and the file that they are stored in.

``measure`` fills them from a real PostgreSQL; the simulation and the page read nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.errors import BenchError
from bench.report.figures import Spread
from bench.scaling.fleet import Observed

FILE: Final = Path(__file__).parent.parent / "scaling.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """One measured quantity."""

    what: str
    """As the page names it."""
    unit: str
    low: float
    high: float
    """A median outside of this range is a mistake of the measurement, on any machine that people use."""


def _cpu(what: str, high: float) -> Quantity:
    return Quantity(what=what, unit="µs", low=1, high=high)


#: In the order of the page. ``server``: CPU of the database; ``client``: CPU of the node that sends the statement.
QUANTITIES: Final[Mapping[str, Quantity]] = {
    "disk_sync": Quantity(what="`fdatasync` of a page of the log", unit="µs", low=5, high=30_000),
    "round_trip": Quantity(what="a round trip to the database, on this host", unit="µs", low=10, high=5_000),
    "renewal_server": _cpu("renewal of a lease: database", 2_000),
    "renewal_client": _cpu("renewal of a lease: node", 5_000),
    "renewal_log": Quantity(what="renewal of a lease: log", unit="bytes", low=50, high=10_000),
    "head_server": _cpu("reading the head: database", 1_000),
    "head_client": _cpu("reading the head: node", 5_000),
    "acknowledgement_server": _cpu("acknowledgement: database", 1_000),
    "acknowledgement_client": _cpu("acknowledgement: node", 5_000),
    "acknowledgement_log": Quantity(what="acknowledgement: log", unit="bytes", low=50, high=10_000),
    "notify_sender": Quantity(what="NOTIFY: the backend that commits, for each listener", unit="µs", low=0.1, high=500),
    "notify_receiver": _cpu("NOTIFY: each backend that listens", 1_000),
    "poll_server": _cpu("a poll: database, whatever the number of rows", 2_000),
    "poll_server_row": Quantity(what="a poll: database, for each row", unit="µs", low=0.01, high=50),
    "poll_client": _cpu("a poll: node, whatever the number of rows", 5_000),
    "poll_client_row": Quantity(what="a poll: node, for each row", unit="µs", low=0.01, high=100),
    "fetch_server": _cpu("fetching the keys of one change: database", 3_000),
    "fetch_client": _cpu("fetching the keys of one change: node", 5_000),
    "change_server": _cpu("a change, with its audit event: database", 20_000),
    "change_client": _cpu("a change, with its audit event: node", 50_000),
    "change_wall": Quantity(what="a change, with its audit event: wall", unit="µs", low=500, high=200_000),
    "change_log": Quantity(what="a change, with its audit event: log", unit="bytes", low=500, high=200_000),
    "grant_server": _cpu("resolving a grant, one at a time: database", 10_000),
    "grant_batch_server": _cpu("resolving a grant, 32 at a time: database", 5_000),
    "use_server": _cpu("adding a use to a token's usage, 100 at a time: database", 5_000),
    "use_log": Quantity(what="adding a use to a token's usage, 100 at a time: log", unit="bytes", low=50, high=50_000),
    "event_server": _cpu("appending a request's event, 100 at a time: database", 5_000),
    "event_log": Quantity(what="appending a request's event, 100 at a time: log", unit="bytes", low=300, high=50_000),
    "event_wall": _cpu("appending a request's event, 100 at a time: wall", 20_000),
    "token_bytes": Quantity(what="a token's row with its indexes", unit="bytes", low=300, high=5_000),
    "usage_bytes": Quantity(what="a token's usage with its index", unit="bytes", low=50, high=1_000),
    "event_bytes": Quantity(what="an audit event with its indexes", unit="bytes", low=300, high=5_000),
    "session_bytes": Quantity(what="private memory of a node's session in the database", unit="bytes", low=500_000,
                              high=50_000_000),
    "renewals_1": Quantity(what="renewals a second, one connection", unit="/s", low=20, high=100_000),
    "renewals_16": Quantity(what="renewals a second, 16 connections", unit="/s", low=50, high=200_000),
    "acknowledgements_16": Quantity(what="acknowledgements a second, 16 connections", unit="/s", low=100, high=500_000),
    "changes_1": Quantity(what="changes a second, one connection", unit="/s", low=5, high=10_000),
    "changes_8": Quantity(what="changes a second, 8 connections", unit="/s", low=5, high=10_000),
    "grants_16": Quantity(what="grants resolved a second, 16 connections", unit="/s", low=50, high=200_000),
    "gateway_cpu": Quantity(what="a request: worker, authority and supervisor", unit="µs", low=5, high=1_000),
    "cached_grant": Quantity(what="a grant in a worker's cache", unit="bytes", low=200, high=10_000),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurements:
    """One measuring: its date (YYYY-MM-DD, UTC), the machine, every quantity, and the small fleets."""

    taken: str
    machine: Mapping[str, str]
    quantities: Mapping[str, Spread]
    fleets: Sequence[Observed]

    def __getitem__(self, name: str) -> float:
        """The median of a quantity, in its unit."""
        return self.quantities[name].median

    def implausible(self) -> list[str]:
        """The quantities that are missing, unknown, or outside of their ranges, each as a sentence."""
        found = [f"{name} is missing." for name in QUANTITIES if name not in self.quantities]
        found += [f"{name} is not known." for name in self.quantities if name not in QUANTITIES]
        for name, quantity in QUANTITIES.items():
            held = self.quantities.get(name)
            if held is not None and not quantity.low <= held.median <= quantity.high:
                found.append(f"{name} is {held.median:g} {quantity.unit}, not {quantity.low:g} to {quantity.high:g}.")
        return found


def load(file: Path = FILE) -> Measurements:
    """The stored measurements. Raises BenchError if there are none."""
    if not file.exists():
        raise BenchError("There are no measurements: `python -m bench.scaling measure --write` makes them.")
    held: dict[str, Any] = json.loads(file.read_text())
    return Measurements(
        taken=held["taken"],
        machine=held["machine"],
        quantities={name: Spread(**values) for name, values in held["quantities"].items()},
        fleets=tuple(Observed(**values) for values in held["fleets"]),
    )


def save(measured: Measurements, file: Path = FILE) -> None:
    """Store the measurements, with four significant digits."""
    held = asdict(measured)
    held["quantities"] = {
        name: {key: _rounded(value) for key, value in values.items()} for name, values in held["quantities"].items()
    }
    held["fleets"] = [{key: _rounded(value) for key, value in values.items()} for values in held["fleets"]]
    file.write_text(json.dumps(held, indent=1) + "\n")


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
