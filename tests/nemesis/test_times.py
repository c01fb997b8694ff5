"""How long a revocation's answer takes while a node is silent, and a node's recovery: with a lease of two seconds.

How slow the machine is at the time is measured too, and allowed for: what it withholds from a thread that is due
(``probe``), and what a revocation takes without a silent node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.nemesis.cluster import Cluster
from tests.nemesis.failover import OWNER, Watch
from tests.nemesis.faults import LEASE_SECONDS
from tests.nemesis.node import Node
from tests.nemesis.probe import Lateness
from tests.support.gateway import Token
from tests.support.process import wait_until

LONGER_SECONDS = 0.25
"""What an answer may take beside the lease, and without a silent node in all."""
RECOVERY_SECONDS = 1.0
HEALTHY = 3
"""Revocations before a node falls silent: how long they take shows how busy the machine is."""
TRIES = 3
"""The fastest shows what patgate takes; another one includes what else the machine did."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("times"), nodes=3, proxied=0, settings={"workers": 1}) as running:
        running.nodes[0].add_user(OWNER, "editor")
        yield running


def freeze(cluster: Cluster) -> Callable[[], None]:
    silent = cluster.nodes[2]
    silent.pause(silent.pids())
    return silent.resume


def cut_off(cluster: Cluster) -> Callable[[], None]:
    cluster.hosts[2].cut()
    return cluster.hosts[2].mend


@dataclass(frozen=True, kw_only=True, slots=True)
class Took:
    """How long a revocation's answer took, and what the machine adds to the time that it may take; seconds."""

    seconds: float
    slower: float

    def exceeds(self, limit: float) -> bool:
        return self.seconds > limit + self.slower


def revoked(node: Node, tokens: Sequence[Token]) -> list[float]:
    """The seconds from each call to its answer."""
    taken = []
    with node.control_socket() as control:
        for token in tokens:
            begin = time.monotonic()
            control.revoke(token)
            taken.append(time.monotonic() - begin)
    return taken


@pytest.mark.alone
@pytest.mark.parametrize("silence", [freeze, cut_off], ids=lambda silence: silence.__name__)
def test_one_silent_node_delays_one_answer_until_its_lease_is_over(
    silence: Callable[[Cluster], Callable[[], None]], cluster: Cluster
) -> None:
    tried = []
    for _ in range(TRIES):
        waited, following = silenced(silence, cluster)
        tried.append((waited, following))
        assert waited.seconds > LEASE_SECONDS / 2, "the answer did not wait for the silent node"
        if not waited.exceeds(LEASE_SECONDS + LONGER_SECONDS) and not following.exceeds(LONGER_SECONDS):
            return
    raise AssertionError(tried)


def silenced(silence: Callable[[Cluster], Callable[[], None]], cluster: Cluster) -> tuple[Took, Took]:
    """Revoke two tokens while a node is silent. Its row is gone after the first: nobody waits for it any more."""
    nodes, caller = cluster.nodes, cluster.nodes[0]
    tokens = [caller.token(OWNER, name=f"t{time.monotonic_ns()}") for _ in range(HEALTHY + 2)]
    first, second = tokens[HEALTHY:]
    with Watch(nodes, [first, second]) as watch:
        watch.until_all(nodes, first, 200)
        watch.until_all(nodes, second, 200)
    # What these requests have left to write is written: a node that is frozen with a lock in its hand stops everybody
    # for another second, until the database ends its session.
    quiet(cluster)
    usual = max(revoked(caller, tokens[:HEALTHY]))
    with Lateness() as lateness:
        recover = silence(cluster)
        try:
            begin = time.monotonic()
            (waited,) = revoked(caller, [first])
            middle = time.monotonic()
            (following,) = revoked(caller, [second])
            end = time.monotonic()
        finally:
            recover()
    with Watch(nodes, [first, second]) as watch:
        watch.until_all(nodes, first, 401)
        watch.until_all(nodes, second, 401)
    nodes[2].wait_ready()
    return (
        Took(seconds=waited, slower=usual + lateness.withheld(begin, middle)),
        Took(seconds=following, slower=usual + lateness.withheld(middle, end)),
    )


@pytest.mark.alone
def test_every_node_recovers_within_a_second_of_the_stores_return(cluster: Cluster) -> None:
    nodes = cluster.nodes
    token = nodes[0].token(OWNER, name="kept")
    recovered = []
    for _ in range(TRIES):
        with Lateness() as lateness, Watch(nodes, [token]) as watch:
            watch.until_all(nodes, token, 200)
            cluster.server.stop("immediate")
            watch.until_all(nodes, token, 503)
            cluster.server.start()
            # ``start`` returns when the server answers a query.
            returned = time.monotonic()
            watch.until_all(nodes, token, 200, times=1)
            seconds = watch.first(nodes, token, 200, after=returned) - returned
        recovered.append(seconds - lateness.withheld(returned, returned + seconds))
        if recovered[-1] <= RECOVERY_SECONDS:
            return
    raise AssertionError(recovered)


def quiet(cluster: Cluster) -> None:
    """Wait until no transaction is under way, several times in a row."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND xact_start IS NOT NULL"
    )
    seen: list[str] = []

    def idle() -> bool:
        seen.append(cluster.server.psql(query, cluster.database))
        time.sleep(0.1)
        return seen[-10:] == ["0"] * 10

    wait_until(idle, "a database without transactions")
