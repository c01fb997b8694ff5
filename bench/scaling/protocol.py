"""Simulating the protocol of docs/consistency.md: how long a change waits until every node has acknowledged it.

The costs are the measured ones (``measurements``). The database is a number of cores with one queue and a disk with
group commit; the network is a delay; a node has one session, on which it renews and acknowledges one statement at a
time, and a core of its own. Of the protocol the simulation has what costs time:

1. Renewing: every fifth of the lease, from a phase of its own, each node sends one statement, which waits for the disk.
2. Following: a notification costs the committing backend and each listener. Each node then reads the head and
   acknowledges. Then it fetches the keys, on another connection.
3. Changing: changes arrive at random and hold the lock on the head from the first statement to the end of the commit.
4. Waiting: the one that made a change polls every 2 ms, and pays for each row.

Changes are made by authorities of their own, so none shares its poller with another. Not simulated: locks inside of
PostgreSQL, vacuum, checkpoints, lost packets, and nodes that are frozen (their cost is the lease, by rule 15).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.report.figures import percentile
from bench.scaling.engine import Disk, Simulator, Station, Then, Turns
from bench.scaling.measurements import Measurements

POLL_SECONDS: Final = 0.002
NETWORK_SECONDS: Final = 0.0003
"""Of a round trip within one zone of a cloud."""
#: Round trips of a change (``probe.Revoker``): BEGIN, nine statements, NOTIFY and COMMIT.
TRIPS: Final = 11
RENEWALS: Final = 5
"""In the time of a lease."""
_US: Final = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """What is simulated. Times in seconds."""

    nodes: int
    changes_per_second: float = 10.0
    lease: float = 2.0
    cores: int = 8
    """Of the database."""
    network: float = NETWORK_SECONDS
    """Of a round trip, besides what the statement itself takes."""
    sync: float | None = None
    """Of the disk; None: as measured."""
    poll: float = POLL_SECONDS
    one_client: bool = False
    """All nodes share one core, as in a measured fleet (``fleet``)."""
    variability: float = 0.5
    """Of each service time: 0 fixed, 1 exponentially distributed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came out. Times in milliseconds; None if no change was finished."""

    changes: int
    acknowledged_p50: float | None
    """From COMMIT's return to the poll that saw every acknowledgement."""
    acknowledged_p99: float | None
    commit_p50: float | None
    """From the first statement to COMMIT's return, with the wait for the lock."""
    commit_p99: float | None
    utilisation: float
    """Of the database's cores."""
    renewal_p99: float
    late: float
    """The share of renewals that took longer than half a lease, after which a node gives its connection up."""
    lapsed: float
    """The share of the nodes' time without a lease."""
    unfinished: int
    """Changes that were asked for and not answered at the end."""
    syncs_per_second: float

    @property
    def steady(self) -> bool:
        """Whether the database keeps up: its cores are not full, and all nodes renew their leases in time."""
        renewed = self.lapsed < 0.0005 and self.late < 0.0005
        return self.utilisation < 0.95 and renewed and self.unfinished <= max(3, self.changes // 10)


class _Node:
    """One node: its session, its lease, what it has applied."""

    __slots__ = ("behind", "expires", "following", "renewing", "turns")

    def __init__(self, expires: float) -> None:
        self.turns = Turns()
        self.expires = expires
        self.renewing = False
        self.following = False
        self.behind = False


class _Fleet:
    """All nodes on one database."""

    def __init__(self, costs: Measurements, deployment: Deployment, seed: int, warm_up: float) -> None:
        self._costs = costs
        self._is = deployment
        self._warm_up = warm_up
        self.simulator = Simulator(seed)
        variability = deployment.variability
        self.database = Station(self.simulator, deployment.cores, variability=variability)
        sync = costs["disk_sync"] * _US if deployment.sync is None else deployment.sync
        self.disk = Disk(self.simulator, sync, variability=variability)
        self._client = Station(self.simulator, 1, variability=variability) if deployment.one_client else None
        self._head_lock = Turns()
        self.committed = 0
        """The number of the newest change that is committed."""
        self.asked = self.answered = 0
        self.acknowledged = [0] * deployment.nodes
        self.nodes = [_Node(deployment.lease) for _ in range(deployment.nodes)]
        self.waits: list[float] = []
        self.commits: list[float] = []
        self.renewals: list[float] = []
        self.lapsed = 0.0

    def cost(self, name: str) -> float:
        """A measured cost, in seconds."""
        return self._costs[name] * _US

    def statement(self, name: str, then: Then, *, began: Then | None = None, rows: int = 0) -> None:
        """Send a statement, let the database execute it, and read the answer. The node's own work is spent first."""
        client, server = self.cost(f"{name}_client"), self.cost(f"{name}_server")
        if rows:
            client += rows * self.cost(f"{name}_client_row")
            server += rows * self.cost(f"{name}_server_row")
        self.exchange(client, server, then, began)

    def exchange(self, client: float, server: float, then: Then, began: Then | None = None) -> None:
        half = self._is.network / 2
        after = self.simulator.after
        self.work(client, lambda: after(half, lambda: self.database.serve(server, lambda: after(half, then), began)))

    def work(self, seconds: float, then: Then) -> None:
        """Work of a node, on its own core or on the one that all share."""
        if self._client is None:
            self.simulator.after(self.simulator.varied(seconds, self._is.variability), then)
        else:
            self._client.serve(seconds, then)

    # Renewing.
    def renew(self, node: _Node) -> None:
        began = self.simulator.now
        self.simulator.after(self._is.lease / RENEWALS, lambda: self.renew(node))
        if node.renewing:
            return
        node.renewing = True

        def renewed() -> None:
            node.turns.give_back()
            node.renewing = False
            now = self.simulator.now
            if now > self._warm_up:
                self.renewals.append(now - began)
                self.lapsed += max(0.0, now - max(node.expires, self._warm_up))
            node.expires = max(node.expires, began + self._is.lease)

        node.turns.take(lambda: self.statement("renewal", lambda: self.disk.sync(renewed)))

    # Following.
    def notified(self, place: int) -> None:
        node = self.nodes[place]
        if node.following:
            node.behind = True
            return
        node.following = True

        def follow() -> None:
            node.behind = False
            head = 0

            def read() -> None:
                nonlocal head
                head = self.committed

            def acknowledge() -> None:
                self.statement("acknowledgement", acknowledged)

            def acknowledged() -> None:
                self.acknowledged[place] = head
                node.turns.give_back()
                self.statement("fetch", fetched)

            def fetched() -> None:
                if node.behind or head < self.committed:
                    node.turns.take(follow)
                else:
                    node.following = False

            self.statement("head", acknowledge, began=read)

        node.turns.take(follow)

    # Changing and waiting.
    def change(self) -> None:
        self.simulator.after(self.simulator.random.expovariate(self._is.changes_per_second), self.change)
        self.asked += 1
        began = self.simulator.now
        client, server = self.cost("change_client") / TRIPS, self.cost("change_server") / TRIPS

        def trip(left: int) -> Then:
            return lambda: self.exchange(client, server, trip(left - 1) if left > 1 else commit)

        def commit() -> None:
            self.disk.sync(committed)

        def committed() -> None:
            # The transaction has ended and its locks are released; then the backend signals the listeners, and only
            # then it answers.
            self.committed += 1
            number = self.committed
            self._head_lock.give_back()
            signals = self.cost("notify_sender") * self._is.nodes
            half = self._is.network / 2
            self.database.serve(signals, lambda: self.simulator.after(half, lambda: self._wait(began, number)), wake)

        def wake() -> None:
            for place in range(self._is.nodes):
                self.database.serve(self.cost("notify_receiver"), self._arrival(place))

        self._head_lock.take(trip(TRIPS))

    def _arrival(self, place: int) -> Then:
        return lambda: self.simulator.after(self._is.network / 2, lambda: self.notified(place))

    def _wait(self, began: float, number: int) -> None:
        committed = self.simulator.now
        complete = False

        def look() -> None:
            nonlocal complete
            complete = min(self.acknowledged) >= number

        def seen() -> None:
            if not complete:
                self.simulator.after(self._is.poll, poll)
                return
            self.answered += 1
            if began > self._warm_up:
                self.commits.append(committed - began)
                self.waits.append(self.simulator.now - committed)

        def poll() -> None:
            self.statement("poll", seen, began=look, rows=self._is.nodes)

        poll()


def simulate(
    costs: Measurements, deployment: Deployment, *, seconds: float = 10.0, warm_up: float = 1.0, seed: int = 1
) -> Outcome:
    """Run the fleet for ``warm_up`` and then ``seconds`` simulated seconds."""
    fleet = _Fleet(costs, deployment, seed, warm_up)
    simulator = fleet.simulator
    for node in fleet.nodes:
        simulator.after(simulator.random.random() * deployment.lease / RENEWALS, _call(fleet.renew, node))
    if deployment.changes_per_second:
        simulator.after(simulator.random.expovariate(deployment.changes_per_second), fleet.change)
    simulator.run(warm_up)
    busy, syncs = fleet.database.busy_seconds, fleet.disk.syncs
    simulator.run(warm_up + seconds)
    lapsed = sum(max(0.0, simulator.now - max(node.expires, warm_up)) for node in fleet.nodes)
    return Outcome(
        changes=len(fleet.waits),
        acknowledged_p50=_ms(fleet.waits, 0.5),
        acknowledged_p99=_ms(fleet.waits, 0.99),
        commit_p50=_ms(fleet.commits, 0.5),
        commit_p99=_ms(fleet.commits, 0.99),
        utilisation=min(1.0, fleet.database.utilisation(warm_up, busy)),
        renewal_p99=_ms(fleet.renewals, 0.99) or 0.0,
        late=sum(time > deployment.lease / 2 for time in fleet.renewals) / max(1, len(fleet.renewals)),
        lapsed=(fleet.lapsed + lapsed) / (seconds * deployment.nodes),
        unfinished=fleet.asked - fleet.answered,
        syncs_per_second=(fleet.disk.syncs - syncs) / seconds,
    )


def _call(work: Callable[[_Node], None], node: _Node) -> Then:
    return lambda: work(node)


def _ms(times: list[float], share: float) -> float | None:
    return percentile(times, share) * 1e3 if times else None
