"""What happens to running nodes when another database takes the place of theirs.

Each scenario is a function that takes a directory, and fails with an AssertionError if the nodes do what they must not.
``tree`` is the checkout that the nodes run.

A ``Watch`` asks every node about tokens without a pause, and has every answer with the time at which it was asked.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.nemesis.cluster import Cluster
from tests.nemesis.database import dump, restore
from tests.nemesis.faults import Database, Fault, Maker
from tests.nemesis.node import Node
from tests.nemesis.run import Options, Report, run
from tests.nemesis.wire import Answer, call
from tests.support.gateway import ROOT, ControlClient, Token
from tests.support.process import HANGS_SECONDS, wait_until
from tests.support.rawhttp import Connection, ConnectionEnded, request_bytes

OWNER: Final = "eve@example.org"
ASKED: Final = {
    "X-Forwarded-Method": "PUT", "X-Forwarded-Uri": "/v1/things/42", "X-Forwarded-Host": "app.example.org",
}  # fmt: skip
ACCEPTED: Final = "a node accepted a token that had been revoked"
OPERATOR: Final = f"uid:{os.geteuid()}"
"""The actor of what the tests do at the command line."""
MEDDLING_SECONDS: Final = 10.0
WATCH_SECONDS: Final = 3.0
"""How long nodes are watched that must refuse: longer than a lease."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One answer: when it was asked for (monotonic seconds), by which node, about which token."""

    asked: float
    node: int
    token: str
    status: int


class Watch:
    """A thread for each node, which asks it about each of these tokens in turn."""

    def __init__(self, nodes: Sequence[Node], tokens: Sequence[Token]) -> None:
        self.seen: list[Seen] = []
        self._tokens = list(tokens)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(node,), name=f"watch n{node.number}", daemon=True)
            for node in nodes
        ]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, node: Node) -> None:
        connection: Connection | None = None
        while not self._stopping.is_set():
            for token in self._tokens:
                asked = time.monotonic()
                try:
                    connection = connection or connect(node)
                    response = connection.exchange(request_bytes("GET", "/traefik", headers=ASKED | token.bearer))
                    self.seen.append(Seen(asked=asked, node=node.number, token=token.id, status=response.status))
                except (OSError, ConnectionEnded):
                    if connection is not None:
                        connection.close()
                    connection = None
            self._stopping.wait(0.002)
        if connection is not None:
            connection.close()

    def after(self, moment: float, token: Token, node: int | None = None) -> Counter[int]:
        """How often each status was the answer about the token to what was asked after ``moment``."""
        found = [seen for seen in list(self.seen) if seen.asked > moment and seen.token == token.id]
        return Counter(seen.status for seen in found if node is None or seen.node == node)

    def first(self, nodes: Sequence[Node], token: Token, status: int, *, after: float) -> float:
        """When the last of the nodes was first asked, after this moment, what it answered so. There must be answers."""
        return max(
            min(
                seen.asked
                for seen in list(self.seen)
                if seen.asked > after and seen.node == node.number and (seen.token, seen.status) == (token.id, status)
            )
            for node in nodes
        )

    def until_all(self, nodes: Sequence[Node], token: Token, status: int, *, times: int = 3) -> None:
        """Wait until each node has answered so about the token, several times from now on."""
        begun = time.monotonic()
        wait_until(
            lambda: all(self.after(begun, token, node.number)[status] >= times for node in nodes),
            f"{status} from every node",
        )


def connect(node: Node) -> Connection:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(30.0)
    try:
        client.connect(os.fspath(node.socket))
    except OSError:
        client.close()
        raise
    return Connection(sock=client, seconds=30.0)


def revoke(node: Node, token: Token) -> float:
    """Revoke the token, and return when the answer came (monotonic). What is refused or in doubt is tried again."""
    answers: list[Answer] = []

    def acknowledged() -> bool:
        path = f"/tokens/{token.id}/revoke"
        answers.append(asyncio.run(call(str(node.data / "control.sock"), "POST", path, seconds=HANGS_SECONDS)))
        assert answers[-1].acknowledged or answers[-1].status in (0, 503), answers[-1]
        return answers[-1].acknowledged

    wait_until(acknowledged, "an acknowledged revocation")
    return answers[-1].end / 1e9


def accept(node: Node) -> None:
    """What an operator does after looking at the store."""
    done = node.here("nodes", "accept", "--yes")
    assert done.returncode == 0, done.stderr


def why_unready(node: Node) -> str:
    """The reasons of ``/readyz``; "" if it is ready."""
    with node.control_socket() as control:
        return control.unready()


class Meddling:
    """Asks nodes for changes, one after the other, while another database takes the place of theirs.

    A node that followed it would make them, and so raise the store's number to that of the changes that it lacks.
    """

    def __init__(self) -> None:
        self.made: list[str] = []
        self._asked = 0

    def at(self, node: Node) -> None:
        self._asked += 1
        email = f"somebody-{self._asked}@example.org"
        # Refused, not answered, or the node's authority is being replaced.
        with suppress(AssertionError, OSError, ConnectionEnded):
            with ControlClient(node.data / "control.sock", seconds=MEDDLING_SECONDS) as control:
                control.call("POST", "/users", {"email": email, "role": "viewer"})
            self.made.append(f"{email} at n{node.number}")


def fenced_or_wrong(nodes: Sequence[Node], watch: Watch, token: Token, revoked: float, meddling: Meddling) -> bool:
    """Whether every node is fenced; fails as soon as one accepts the token that was revoked."""
    for node in nodes:
        meddling.at(node)
        wrong = [each.number for each in nodes if watch.after(revoked, token, each.number)[200]]
        assert not wrong, f"{ACCEPTED}: n{wrong[0]}"
    return all("store" in why_unready(node) for node in nodes)


def replaced(
    directory: Path, replace: Callable[[Cluster, Callable[[], None]], None], *, lost: bool, tree: Path = ROOT,
    standby: bool = True, failover: str = "refuse",
) -> None:  # fmt: skip
    """Another database takes the place of the nodes' own, and an operator must accept it (``failover: refuse``).

    ``replace`` gets the cluster and what is to be done before the replacement: a revocation, which the other database
    lacks if ``lost``.
    """
    cluster = Cluster(
        directory, nodes=2, proxied=0, standby="asynchronous" if standby else "", tree=tree,
        settings={"failover": failover, "workers": 1},
    )  # fmt: skip
    with cluster:
        nodes = cluster.nodes
        nodes[0].add_user(OWNER, "editor")
        kept, early, late = (nodes[0].token(OWNER, name=name) for name in ("kept", "early", "late"))
        with Watch(nodes, [kept, early, late]) as watch:
            watch.until_all(nodes, late, 200)
            revoked = [revoke(nodes[1], early)]

            def revoke_late() -> None:
                revoked.append(revoke(nodes[0], late))

            replace(cluster, revoke_late)
            assert len(revoked) == 2, "nothing was revoked before the replacement"
            # The worker that replaces it has no cache: it asks the new store about every token. The other one has one.
            nodes[0].kill_one("gateway")
            meddling = Meddling()
            wait_until(lambda: fenced_or_wrong(nodes, watch, late, revoked[1], meddling), "every node fenced")
            assert not meddling.made, f"changes were made before an operator accepted the store: {meddling.made}"
            fenced = time.monotonic()
            time.sleep(WATCH_SECONDS)
            for token in (kept, early, late):
                watch.until_all(nodes, token, 503)
                for node in nodes:
                    found = watch.after(fenced, token, node.number)
                    assert set(found) == {503}, f"a fenced node {node.number} answered {dict(found)}"
            refused = nodes[0].here("token", "revoke", kept.id)
            assert refused.returncode != 0, "a fenced node made a change"
            assert watch.after(revoked[0], early)[200] == 0
            assert watch.after(revoked[1], late)[200] == 0
            accept(nodes[0])
            watch.until_all(nodes, kept, 200)
            watch.until_all(nodes, early, 401)
            # That is what the operator has accepted: changes that are not in this store never happened.
            watch.until_all(nodes, late, 200 if lost else 401)
            if lost:
                revoke_late()
                watch.until_all(nodes, late, 401)
                assert watch.after(revoked[-1], late)[200] == 0
            assert watch.after(revoked[0], early)[200] == 0
        verified = nodes[0].here("audit", "verify")
        assert verified.returncode == 0, verified.stderr
        logged = nodes[0].here("audit", "export", "--action", "account.store.accept_history", "--actor", OPERATOR)
        assert len(logged.stdout.splitlines()) == 1, logged.stdout


def lagging_standby(directory: Path, *, tree: Path = ROOT) -> None:
    """The primary dies, and a standby is promoted that lacks the last revocation."""

    def replace(cluster: Cluster, revoke: Callable[[], None]) -> None:
        cluster.standby.catch_up()
        cluster.standby.fall_behind()
        revoke()
        cluster.server.stop("kill")
        cluster.standby.promote()

    replaced(directory, replace, lost=True, tree=tree)


def complete_standby(directory: Path, *, tree: Path = ROOT) -> None:
    """The primary dies, and a standby that has everything is promoted: nodes cannot know that, and refuse it, too."""

    def replace(cluster: Cluster, revoke: Callable[[], None]) -> None:
        revoke()
        cluster.standby.catch_up()
        cluster.server.stop("kill")
        cluster.standby.promote()

    replaced(directory, replace, lost=False, tree=tree)


def overtaken_standby(directory: Path, *, tree: Path = ROOT) -> None:
    """The promoted standby lacks a revocation, and has got more changes than the nodes have seen before they see it.

    Only the mark of the last change that a node remembers shows that the number means another change, even where
    another place of the store is trusted (``failover: synchronous``).
    """

    def replace(cluster: Cluster, revoke: Callable[[], None]) -> None:
        cluster.standby.catch_up()
        cluster.standby.fall_behind()
        revoke()
        # At once: what the nodes have remembered at their last renewal is older.
        for node in cluster.nodes:
            node.pause(node.pids())
        cluster.server.stop("kill")
        cluster.standby.promote()
        # Somebody else's changes, such as those of nodes that were started on it.
        cluster.standby.psql(
            """
            BEGIN;
            INSERT INTO changes (epoch, touched, at, mark)
                SELECT h.n + i, '["user:nobody"]', 0, decode(md5(random()::text), 'hex')
                FROM change_head h, generate_series(1, 20) i;
            UPDATE change_head SET n = n + 20,
                mark = (SELECT mark FROM changes WHERE epoch = (SELECT max(epoch) FROM changes));
            COMMIT
            """,
            cluster.database,
        )
        for node in cluster.nodes:
            node.resume()

    replaced(directory, replace, lost=True, tree=tree, failover="synchronous")


def yesterdays_dump(directory: Path, *, tree: Path = ROOT) -> None:
    """A dump from before a revocation is restored under the running nodes."""

    def replace(cluster: Cluster, revoke: Callable[[], None]) -> None:
        file = cluster.server.directory / "yesterday.dump"
        dump(cluster.server, cluster.database, file)
        revoke()
        restore(cluster.server, cluster.database, file)

    replaced(directory, replace, lost=True, tree=tree, standby=False)


def synchronous_under_load(directory: Path, seed: int, *, seconds: float = 16.0) -> Report:
    """A synchronous standby is promoted while clients ask and change: nothing is lost, and nobody has to accept it."""
    cluster = Cluster(
        directory, nodes=3, proxied=0, standby="synchronous", settings={"failover": "synchronous", "workers": 1}
    )
    with cluster:

        def fail(_chance: object) -> Fault:
            return Database("promotion", seconds, promote)

        def promote() -> None:
            cluster.server.stop("kill")
            cluster.standby.promote()

        makers: dict[str, Maker] = {"promotion": fail}
        options = Options(
            seed=seed, clients=2, changers=3, connections=3, rate=600.0, decisions=1, changes=1, every_change=False,
            seconds=seconds, most_seconds=seconds, gap=(seconds / 3, seconds), at_once=1,
        )  # fmt: skip
        return run(options, cluster.nodes, makers, directory)
