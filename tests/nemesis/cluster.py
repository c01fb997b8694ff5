"""Four nodes on one PostgreSQL, with their network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tests.nemesis.database import NetworkedPostgres, Operations, Standby
from tests.nemesis.faults import Maker, of_links, of_processes, of_proxies
from tests.nemesis.node import Node
from tests.support.faulty_proxy import FaultyProxy
from tests.support.gateway import ROOT
from tests.support.netns import Host, Network


class Cluster:
    """Several nodes on one PostgreSQL, which runs in the middle of their network; ``with`` starts and ends all.

    Of four nodes, two reach the server directly and two through a proxy that can fail. With a ``standby``, nodes know
    the addresses of both servers. ``settings`` are added to each node's configuration. ``tree`` and ``python``: the
    checkout that the nodes run, and its interpreter.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 4,
        proxied: int = 2,
        standby: Literal["", "asynchronous", "synchronous"] = "",
        settings: Mapping[str, Any] | None = None,
        server: Mapping[str, str] | None = None,
        tree: Path = ROOT,
        python: Path | None = None,
    ) -> None:
        self.directory = directory
        self._open = ExitStack()
        self._count = nodes
        self._proxied = proxied
        self._standby = standby
        self._settings = dict(settings or {})
        self._server = server
        self._tree = tree
        self._python = python
        self.nodes: list[Node] = []
        self.hosts: list[Host] = []
        self.proxies: dict[int, FaultyProxy] = {}

    def __enter__(self) -> Cluster:
        with ExitStack() as unless_started:
            unless_started.callback(self.close)
            self._start()
            unless_started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def _start(self) -> None:
        self.network = self._open.enter_context(Network())
        hub, address = self.network.hub, self.network.gateway
        self.server = NetworkedPostgres(hub, address, self._server)
        self._open.enter_context(self.server)
        self.database = self.server.create_database()
        if self._standby:
            self.standby = Standby(self.server, synchronous=self._standby == "synchronous")
            self._open.enter_context(self.standby)
        for number in range(self._count):
            host = self.network.add()
            where = f"{address}:{self.server.port}"
            if self._standby:
                where += f",{address}:{self.standby.port}"
            if number >= self._count - self._proxied:
                proxy = FaultyProxy(where, host=address, prefix=hub.prefix)
                self.proxies[number] = self._open.enter_context(proxy)
                where = f"{address}:{proxy.port}"
            store = {"store": self.server.address_of(self.database, host=where), "lease": "2s", **self._settings}
            node = Node(
                number, self.directory / f"n{number}", store=store, prefix=host.prefix, tree=self._tree,
                python=self._python,
            )  # fmt: skip
            self.hosts.append(host)
            self.nodes.append(node)
            self._open.callback(node.stop)
        # All at once: the store is migrated once.
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_ready()

    def makers(self, longest: float) -> dict[str, Maker]:
        """Every kind of fault; ``longest``: the seconds of the longest freeze and the longest cut."""
        return {
            **of_processes(self.nodes, longest),
            **of_links(self.nodes, self.hosts, longest),
            **of_proxies(self.nodes, self.proxies, longest),
            **Operations(self.server, self.database, longest).makers(),
        }
