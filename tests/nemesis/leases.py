"""A lease at its limits, step by step: what chance finds seldom, because several things must coincide.

Each scenario takes a cluster of two nodes, the second of which reaches PostgreSQL through a proxy, and the number of
the attempt. It leaves both nodes ready (``scenarios.on_a_pair``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from tests.nemesis.cluster import Cluster
from tests.nemesis.failover import ACCEPTED, OWNER, Watch, revoke
from tests.nemesis.faults import DELIVERED_SECONDS
from tests.support.process import HANGS_SECONDS, wait_until

HOLD_SECONDS: Final = 0.6
"""How long an answer is held back: less than a node with a lease of two seconds waits for it."""
TRY_SECONDS: Final = 1.2
"""How long a renewal is waited for: two intervals and the time that a busy machine takes to start ``psql``."""
AFTER_SECONDS: Final = 3.0
"""How long a node is watched after the answer: longer than a lease that began with it."""


def late_reply(cluster: Cluster, number: int) -> None:
    """The answer to a renewal is late, a token is revoked meanwhile, and the node is cut off when it has the answer.

    The lease began when the renewal was sent. Were it timed from the answer, it would outlast the wait of the
    revocation, and the node, which knows nothing of it, would accept the token.
    """
    (sound, late), proxy = cluster.nodes, cluster.proxies[1]
    owner = f"{number}-{OWNER}"
    sound.add_user(owner, "editor")
    token = sound.token(owner)
    with Watch([late], [token]) as watch:
        watch.until_all([late], token, 200, times=50)
        _hold_a_renewal(cluster, lambda: watch.until_all([late], token, 200, times=50))
        executed = time.monotonic()
        answered: list[float] = []
        revoking = threading.Thread(target=lambda: answered.append(revoke(sound, token)), name="revoke")
        revoking.start()
        time.sleep(max(0.0, executed + HOLD_SECONDS - time.monotonic()))
        # What the node says next, such as a question for the newest change, is not answered any more.
        proxy.command("stall up")
        proxy.command("release down")
        time.sleep(DELIVERED_SECONDS)
        proxy.command("cut")
        revoking.join()
        time.sleep(AFTER_SECONDS)
        assert answered, "the revocation was not acknowledged"
        assert not watch.after(answered[0], token)[200], f"{ACCEPTED}: n{late.number}"
    proxy.command("mend")
    late.wait_ready()


def silent_authority(cluster: Cluster, number: int) -> None:
    """The authority of a node stops; its workers serve from their caches until the lease ends, and know no change."""
    late = cluster.nodes[1]
    _revoked_behind_its_back(
        cluster, f"{number}-silent-{OWNER}", lambda: late.pause(late.of_role("authority")), late.resume
    )


def silent_network(cluster: Cluster, number: int) -> None:
    """Nothing passes between a node and PostgreSQL, and no connection ends."""
    proxy = cluster.proxies[1]

    def stall() -> None:
        proxy.command("stall down")
        proxy.command("stall up")

    _revoked_behind_its_back(cluster, f"{number}-deaf-{OWNER}", stall, lambda: proxy.command("mend"))


def _revoked_behind_its_back(
    cluster: Cluster, owner: str, silence: Callable[[], object], recover: Callable[[], object]
) -> None:
    """Revoke a token at one node while the other, which holds a lease, hears nothing of it.

    The answer must wait for the end of that lease; until then the other node accepts the token, as it should.
    """
    sound, late = cluster.nodes
    sound.add_user(owner, "editor")
    token = sound.token(owner)
    with Watch([late], [token]) as watch:
        watch.until_all([late], token, 200, times=50)
        _await_a_renewal(cluster)
        silence()
        try:
            answered = revoke(sound, token)
            time.sleep(AFTER_SECONDS)
            assert not watch.after(answered, token)[200], f"{ACCEPTED}: n{late.number}"
        finally:
            recover()
        watch.until_all([late], token, 401)
    late.wait_ready()


def _hold_a_renewal(cluster: Cluster, recovered: Callable[[], None]) -> None:
    """Let a renewal of the proxied node be executed, and hold its answer back.

    It can be the answer to another question that is held back. Then the node gives up its connection, and renews no
    more: the proxy is mended, and as soon as the node has ``recovered``, this is tried again.
    """
    proxy = cluster.proxies[1]
    deadline = time.monotonic() + HANGS_SECONDS
    while True:
        proxy.command("notify off")
        proxy.command("stall down")
        known = _renewals(cluster)  # now: each renewal that is counted from here on has no answer
        tried = time.monotonic() + TRY_SECONDS
        while time.monotonic() < tried:
            # Each node renews; the sound one alone can have done so without the other's being executed, too.
            now = _renewals(cluster)
            if known.keys() == now.keys() and all(now[node] > count for node, count in known.items()):
                return
        assert time.monotonic() < deadline, "no renewal could be held back"
        proxy.command("mend")
        cluster.nodes[1].wait_ready()
        recovered()


def _await_a_renewal(cluster: Cluster) -> None:
    """Return when every node has renewed its lease a moment ago, so that most of it is left."""
    known = _renewals(cluster)
    wait_until(lambda: all(count > known.get(node, 0) for node, count in _renewals(cluster).items()), "renewals")


def _renewals(cluster: Cluster) -> dict[str, int]:
    rows = cluster.server.psql("SELECT id, renewals FROM nodes", cluster.database).splitlines()
    return {row.partition("|")[0]: int(row.partition("|")[2]) for row in rows}
