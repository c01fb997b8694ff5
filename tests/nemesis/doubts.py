"""A COMMIT in doubt, step by step: its caller is told what happened, or that it is unknown.

The proxy takes the COMMIT away before it reaches the server, or takes its answer away after the server has executed
it. Each scenario takes a cluster of two nodes, the second of which is behind the proxy, and the number of the attempt.
It leaves both nodes ready (``scenarios.on_a_pair``).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from tests.nemesis.cluster import Cluster
from tests.nemesis.failover import ACCEPTED, OWNER, Watch
from tests.nemesis.node import Node
from tests.nemesis.wire import Answer, call
from tests.support.gateway import Token
from tests.support.process import HANGS_SECONDS

UNTRUE: Final = "a caller was told that nothing was changed, and the change is in force"
AFTER_SECONDS: Final = 1.0
"""How long the nodes are watched after a success."""
TRIES: Final = 5
"""How often a revocation is tried until its COMMIT is the one that was struck."""
IN_DOUBT: Final = frozenset({"in_doubt", "outcome_unknown"})


def unsent(cluster: Cluster, number: int) -> None:
    """The COMMIT of a revocation never reaches the server: nothing is stored, and nobody is told that it is."""
    owner = f"{number}-unsent-{OWNER}"
    cluster.nodes[0].add_user(owner, "editor")
    token = cluster.nodes[0].token(owner)
    with Watch(cluster.nodes, [token]) as watch:
        watch.until_all(cluster.nodes, token, 200)
        answer = _struck(cluster, "lose on", "lost", token)
        answered = time.monotonic()
        if answer.acknowledged:
            time.sleep(AFTER_SECONDS)
        found = watch.after(answered, token)
        assert not (answer.acknowledged and found[200]), f"{ACCEPTED}: its COMMIT was lost, and the answer a success"
        assert answer.status == 503, f"{answer.status} {answer.document} for a COMMIT that was lost"
        watch.until_all(cluster.nodes, token, 200)
        again = _revoke(cluster.nodes[1], token)
        assert again.acknowledged, again
        watch.until_all(cluster.nodes, token, 401)


def executed(cluster: Cluster, number: int) -> None:
    """The COMMIT of a revocation is executed and its answer is lost: nobody is told that nothing was changed."""
    owner = f"{number}-executed-{OWNER}"
    cluster.nodes[0].add_user(owner, "editor")
    token = cluster.nodes[0].token(owner)
    with Watch(cluster.nodes, [token]) as watch:
        watch.until_all(cluster.nodes, token, 200)
        answer = _struck(cluster, "doubt on", "doubted", token)
        answered = time.monotonic()
        with cluster.nodes[0].control_socket() as control:
            status = control.call("GET", f"/tokens/{token.id}")["status"]
        assert status == "revoked", f"its COMMIT was executed, and the token is {status}"
        told = answer.acknowledged or answer.reason in IN_DOUBT
        assert told, f"{UNTRUE}: {answer.status} {answer.document}"
        watch.until_all(cluster.nodes, token, 401)
        if answer.acknowledged:
            assert not watch.after(answered, token)[200], ACCEPTED


def _struck(cluster: Cluster, fault: str, counted: str, token: Token) -> Answer:
    """The answer to a revocation at the proxied node whose COMMIT the proxy has struck; the proxy is mended.

    It can be refused before, such as by a node whose lease has run out on a busy machine. Then it is tried again.
    """
    node, proxy = cluster.nodes[1], cluster.proxies[1]
    answers = []
    for _ in range(TRIES):
        before = proxy.command(fault)[counted]
        answers.append(_revoke(node, token))
        after = proxy.command("mend")[counted]
        node.wait_ready()
        if after != before:
            return answers[-1]
        assert not answers[-1].acknowledged, "a revocation was acknowledged without a COMMIT"
    raise AssertionError(f"no COMMIT was struck: {answers}")


def _revoke(node: Node, token: Token) -> Answer:
    path = str(node.data / "control.sock")
    return asyncio.run(call(path, "POST", f"/tokens/{token.id}/revoke", seconds=HANGS_SECONDS))
