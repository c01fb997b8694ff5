"""A COMMIT in doubt, step by step: the answer says what happened, or that it is unknown.

The proxy takes the COMMIT away before it reaches the server, or takes its answer away after the server has executed
it. Each scenario takes a cluster of two nodes, the second of which is behind the proxy, and the number of the attempt.
It leaves both nodes ready (``scenarios.on_a_pair``).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tests.nemesis.cluster import Cluster
from tests.nemesis.failover import ACCEPTED, OWNER, Watch, revoke
from tests.nemesis.wire import Answer, call
from tests.support.gateway import Token
from tests.support.process import HANGS_SECONDS

UNTRUE: Final = "an answer said that nothing was changed, and the change is in force"
AFTER_SECONDS: Final = 1.0
"""How long the nodes are watched after a success."""
TRIES: Final = 5
"""How often a revocation is tried until its COMMIT is the one that was struck."""
IN_DOUBT: Final = frozenset({"in_doubt", "outcome_unknown"})


def unsent(cluster: Cluster, number: int) -> None:
    """The COMMIT of a revocation never reaches the server: nothing is stored, and no answer says that it is.

    At once another node makes a change, which gets the number that the revocation would have had. So every node soon
    has this number; only the mark shows that it is another change.
    """
    sound, doubtful = cluster.nodes
    owner = f"{number}-unsent-{OWNER}"
    sound.add_user(owner, "editor")
    token = sound.token(owner)
    with Watch(cluster.nodes, [token]) as watch:
        watch.until_all(cluster.nodes, token, 200)
        answer, answered = _struck(
            cluster, "lose on", "lost", token, lambda attempt: sound.add_user(f"{attempt}-{owner}", "editor")
        )
        if answer.acknowledged:
            time.sleep(AFTER_SECONDS)
        found = watch.after(answered, token)
        assert not (answer.acknowledged and found[200]), f"{ACCEPTED}: its COMMIT was lost, and the answer a success"
        assert answer.status == 503, f"{answer.status} {answer.document} for a COMMIT that was lost"
        watch.until_all(cluster.nodes, token, 200)
        revoke(doubtful, token)
        watch.until_all(cluster.nodes, token, 401)
    doubtful.wait_ready()


def executed(cluster: Cluster, number: int) -> None:
    """The COMMIT of a revocation is executed and its answer is lost: no answer says that nothing was changed."""
    owner = f"{number}-executed-{OWNER}"
    cluster.nodes[0].add_user(owner, "editor")
    token = cluster.nodes[0].token(owner)
    with Watch(cluster.nodes, [token]) as watch:
        watch.until_all(cluster.nodes, token, 200)
        answer, answered = _struck(cluster, "doubt on", "doubted", token)
        with cluster.nodes[0].control_socket() as control:
            status = control.call("GET", f"/tokens/{token.id}")["status"]
        assert status == "revoked", f"its COMMIT was executed, and the token is {status}"
        honest = answer.acknowledged or answer.reason in IN_DOUBT
        assert honest, f"{UNTRUE}: {answer.status} {answer.document}"
        watch.until_all(cluster.nodes, token, 401)
        if answer.acknowledged:
            assert not watch.after(answered, token)[200], ACCEPTED
    cluster.nodes[1].wait_ready()


def _struck(
    cluster: Cluster, fault: str, counted: str, token: Token, meanwhile: Callable[[int], object] = lambda _: None
) -> tuple[Answer, float]:
    """The answer to a revocation at the proxied node whose COMMIT the proxy has struck, and when it came (monotonic).

    ``meanwhile`` is called as soon as the proxy has done so, with the number of the attempt. Then the proxy is mended.

    The revocation can be refused before its COMMIT, such as by a node whose lease has run out on a busy machine. Then
    it is tried again.
    """
    node, proxy = cluster.nodes[1], cluster.proxies[1]
    answers: list[tuple[Answer, float]] = []

    def attempted() -> None:
        path = f"/tokens/{token.id}/revoke"
        answer = asyncio.run(call(str(node.data / "control.sock"), "POST", path, seconds=HANGS_SECONDS))
        answers.append((answer, time.monotonic()))

    for attempt in range(TRIES):
        node.wait_ready()
        before = proxy.command(fault)[counted]
        revoking = threading.Thread(target=attempted, name="revoke")
        revoking.start()
        struck = False
        while not struck and revoking.is_alive():
            struck = proxy.command("report")[counted] != before
        if struck:
            # On a busy machine it may be refused; then this attempt shows less.
            with suppress(AssertionError):
                meanwhile(attempt)
        revoking.join()
        struck = proxy.command("mend")[counted] != before
        if struck:
            return answers[-1]
        assert not answers[-1][0].acknowledged, "a revocation was acknowledged without a COMMIT"
    raise AssertionError(f"no COMMIT was struck: {answers}")
