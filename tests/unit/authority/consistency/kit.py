"""Real nodes over a real PostgreSQL, and what a worker of a node would decide."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from proxy.authority.runtime import Authority
from proxy.core.ipc.clock import boottime_ns
from proxy.core.ipc.shared_memory import PAGE_SIZE, PageView
from proxy.core.model import Actor, ActorKind
from proxy.settings.model import Settings
from proxy.store import dialects
from proxy.store.nodes.records import NodeRow
from proxy.store.nodes.sessions import MemberPoll, NodeSession
from tests.unit.authority.child import AuthorityProcess

ACTOR = Actor(kind=ActorKind.SYSTEM, id="test", name="test")
SECRET_KEY = "k" * 64
LEASE = 1.0


def node_settings(data_dir: Path, url: str, **more: Any) -> Settings:
    """Settings of one node; all nodes have the same, but for the data directory."""
    data_dir.mkdir(exist_ok=True)
    document: dict[str, Any] = {
        "brand": "acme",
        "data_dir": str(data_dir),
        "store": url,
        "secret_key": SECRET_KEY,
        "lease": LEASE,
        "roles": {"editor": ["things:*"], "viewer": ["things:read"]},
        "argon2": {"memory": "64KiB", "iterations": 1},
    }
    return Settings.model_validate(document | more)


class Page:
    """A node's page as its workers see it."""

    def __init__(self, data_dir: Path) -> None:
        descriptor = os.open(data_dir / "page", os.O_RDONLY)
        try:
            self._map = mmap.mmap(descriptor, PAGE_SIZE, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self._view = PageView(memoryview(self._map))

    @property
    def epoch(self) -> int:
        return self._view.epoch

    def has_lease(self) -> bool:
        """Whether a worker may decide from its cache now."""
        return self._view.lease_until_ns > boottime_ns()

    def may_serve_without(self, number: int) -> bool:
        """Whether a worker may now accept a token by a cache that lacks this change."""
        return self.has_lease() and self._view.epoch < number

    def close(self) -> None:
        self._view.release()
        self._map.close()


@contextmanager
def page_of(data_dir: Path) -> Iterator[Page]:
    page = Page(data_dir)
    try:
        yield page
    finally:
        page.close()


@contextmanager
def other_node(settings: Settings) -> Iterator[AuthorityProcess]:
    """A node in a process of its own, ready."""
    with AuthorityProcess(settings) as process:
        assert process.ready().strip() == "ready", process.log.read_text()
        yield process


@contextmanager
def frozen(process: AuthorityProcess) -> Iterator[None]:
    """The process stands still inside the block."""
    process.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.process.send_signal(signal.SIGCONT)


def sessions_of(url: str) -> tuple[NodeSession, MemberPoll]:
    return dialects.node_sessions(url, lease=LEASE, listen=True)


def row(id_: str, *, lease: float = LEASE) -> NodeRow:
    return NodeRow(
        id=id_, name="n", version="1", schema="0006", config_hash="", lease=lease, started_at=1_700_000_000.0
    )


async def set_role(authority: Authority, role: str, email: str = "ada@example.org") -> None:
    await authority.services.users.set_role(ACTOR, email, role)


class Relay:
    """A TCP relay in front of the database, which a test can cut: nothing is forwarded then, and nothing closed."""

    def __init__(self, url: str) -> None:
        head, _, rest = url.rpartition("@")
        place, _, database = rest.partition("/")
        host, _, port = place.partition(":")
        self._target = (host, int(port))
        self._head, self._database = head, database
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"{self._head}@127.0.0.1:{port}/{self._database}"

    def cut(self) -> None:
        self._open.clear()

    def mend(self) -> None:
        self._open.set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._open.wait()
            upstream_reader, upstream = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._copy(reader, upstream))
                both.create_task(self._copy(upstream_reader, writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()
