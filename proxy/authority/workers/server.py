"""Link server: the authority's end of the worker link, on ``data_dir/link.sock`` with frames of ``core.ipc.wire``.

Rules of this module:
1. Only processes of our own user or root are served, by the credentials that the kernel reports.
2. An invalid frame closes its link and no other. A well-formed but invalid message gets an error reply.
3. Bounded both ways: at most ``IN_FLIGHT`` requests of one link are processed before more is read from it; a worker
   that does not read its pushes is disconnected at ``BUFFERED`` bytes, and starts over when it links again.
4. A ``hello`` is answered and the link joined to the broadcast without an await in between, so no change falls between
   the epoch in the answer and the first push.

Requests have an ``id``, which the reply repeats. ``hello``, ``resolve``, ``verify`` and ``changes`` are answered;
``counters``, ``requests``, ``uses`` and ``reports`` are not. ``resolve`` has up to ``PREFIXES_AT_ONCE`` prefixes; the
answer covers the first of them, at least one, as of one epoch. A failed request gets ``{"id", "error"}`` with one of
``LinkError``.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from proxy.authority.grants.resolver import GrantResolver
from proxy.authority.sockets import bind_unix, keep_bound, peer_uid
from proxy.authority.workers.broadcast import Broadcast
from proxy.authority.workers.metrics_aggregator import Counters, WorkerKey
from proxy.authority.workers.recorder import RequestRecorder
from proxy.core.errors import AuthorityOverloaded, PatgateError, WireError
from proxy.core.ipc.wire import PREFIXES_AT_ONCE, Deframer, Message, frame, grant_to_wire, refused_to_wire, texts_of
from proxy.core.model import Grant, RefusedGrant
from proxy.observe import defects, metrics
from proxy.observe.logs import get_logger
from proxy.observe.snapshot import SnapshotError, from_wire

LINK_SOCKET: Final = "link.sock"
IN_FLIGHT: Final = 256
BUFFERED: Final = 32 * 1024 * 1024
CHANGES_LIMIT: Final = 10_000
"""Changes that are sent one by one; a worker further behind gets a reset instead."""
READ_SIZE: Final = 256 * 1024
LAST_TURNS: Final = 32
"""Turns of the event loop for which ``close`` still reads the links, so that the workers' last reports arrive."""
TEXTS_AT_ONCE: Final = 4096
"""Permissions in one answer, so that it fits a frame (each has at most 512 characters); a grant alone may be more."""

_log = get_logger("authority.link")


class LinkError(StrEnum):
    """Why a request on the link failed."""

    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    INVALID = "invalid"
    UNKNOWN_OP = "unknown_op"


class ChangeFeed(Protocol):
    """The changes of the store."""

    async def changes_since(self, epoch: int, limit: int) -> tuple[int, tuple[str, ...], bool]:
        """The store's epoch, the keys changed after ``epoch``, and whether those are all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkedWorker:
    """A worker that has sent hello, and the number of changes that it has not yet applied."""

    key: WorkerKey
    lag: int


class _Invalid(Exception):
    """A message lacks a field or has one of the wrong type."""


class LinkServer:
    """Serves every worker of the host. ``start`` binds; ``close`` ends every link."""

    def __init__(
        self,
        data_dir: Path,
        *,
        resolver: GrantResolver,
        feed: ChangeFeed,
        broadcast: Broadcast,
        counters: Counters,
        cache_key: bytes,
        recorder: RequestRecorder,
    ) -> None:
        self._path = data_dir / LINK_SOCKET
        self._resolver = resolver
        self._feed = feed
        self._broadcast = broadcast
        self._counters = counters
        self._cache_key = cache_key
        self._recorder = recorder
        self._server: asyncio.Server | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._links: dict[asyncio.Task[None], _Link] = {}

    async def start(self) -> None:
        """Bind and serve. Raises ConfigurationError or DataDirBusy."""
        await self._listen(bind_unix(self._path))
        self._keeper = asyncio.create_task(keep_bound(self._path, self._listen), name="keep the link bound")
        self._keeper.add_done_callback(defects.noted)

    async def _listen(self, listener: socket.socket) -> None:
        former = self._server
        # Not ``start_unix_server``, which from Python 3.13 on removes the path, which may be a newer socket's.
        self._server = await asyncio.start_server(self._accept, sock=listener)
        if former is not None:
            former.close()

    async def close(self) -> None:
        """End the server and every link."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
        for _ in range(LAST_TURNS if self._links else 0):
            await asyncio.sleep(0)
        tasks = tuple(self._links)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def workers(self) -> tuple[LinkedWorker, ...]:
        """The linked workers."""
        linked = []
        for link in self._links.values():
            if link.key is not None:
                last = self._counters.last(link.key)
                lag = last.gauge(metrics.EPOCH_LAG) if last is not None else None
                linked.append(LinkedWorker(key=link.key, lag=int(lag or 0)))
        return tuple(linked)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(
            self._resolver,
            self._feed,
            self._broadcast,
            self._counters,
            self._cache_key,
            self._recorder,
            reader,
            writer,
        )
        task = asyncio.create_task(link.serve(), name="worker link")
        self._links[task] = link
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._links[task]
        defects.noted(task)


class _Link:
    def __init__(
        self,
        resolver: GrantResolver,
        feed: ChangeFeed,
        broadcast: Broadcast,
        counters: Counters,
        cache_key: bytes,
        recorder: RequestRecorder,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.key: WorkerKey | None = None
        self._resolver = resolver
        self._feed = feed
        self._broadcast = broadcast
        self._counters = counters
        self._cache_key = cache_key
        self._recorder = recorder
        self._reader = reader
        self._writer = writer
        self._places = asyncio.Semaphore(IN_FLIGHT)

    async def serve(self) -> None:
        try:
            if not self._is_ours():
                _log.warning("a process of another user tried to link")
                return
            async with asyncio.TaskGroup() as requests:
                try:
                    await self._read(requests)
                except WireError as error:
                    _log.warning("a worker link is closed", worker=self._worker, error=error)
                    self._writer.transport.abort()
        except* (ConnectionError, BrokenPipeError):
            pass  # the worker has disconnected; its next link starts with a hello
        finally:
            self._broadcast.leave(self)
            if self.key is not None:
                self._counters.retire(self.key)
                self.key = None
            self._writer.close()

    @property
    def _worker(self) -> int | None:
        return None if self.key is None else self.key.worker

    def _is_ours(self) -> bool:
        connection: socket.socket = self._writer.get_extra_info("socket")
        return peer_uid(connection) in (os.geteuid(), 0)

    async def _read(self, requests: asyncio.TaskGroup) -> None:
        deframer = Deframer()
        while data := await self._reader.read(READ_SIZE):
            for message in deframer.feed(data):
                op = message.get("op")
                if op == "hello":
                    self._hello(message)
                elif op == "counters":
                    self._update_counters(message)
                elif op in _RECORDED:
                    self._recorder.take(message)
                else:
                    await self._places.acquire()
                    requests.create_task(self._answer(op, message), name=f"link {op if op in _ANSWERS else '?'}")

    def _hello(self, message: Message) -> None:
        try:
            key = WorkerKey(worker=_integer(message, "worker"), pid=_integer(message, "pid"))
            _integer(message, "applied")
        except _Invalid:
            self._write({"id": message.get("id"), "error": LinkError.INVALID})
            return
        if self.key is not None and self.key != key:
            self._counters.retire(self.key)
        self.key = key
        self._write({"id": message.get("id"), "epoch": self._broadcast.epoch, "cache_key": self._cache_key.hex()})
        self._broadcast.join(self, self._push)

    def _update_counters(self, message: Message) -> None:
        if self.key is None:
            raise WireError("a worker reported counters before it sent hello")
        try:
            self._counters.update(self.key, from_wire(message.get("snapshot")))
        except SnapshotError as error:
            _log.warning("a worker's counters are invalid", worker=self._worker, error=error)

    async def _answer(self, op: object, message: Message) -> None:
        try:
            handler = _ANSWERS.get(op) if isinstance(op, str) else None
            if handler is None:
                reply: Message = {"error": LinkError.UNKNOWN_OP}
            else:
                reply = await self._guarded(handler, message)
            self._reply(message.get("id"), reply)
            await self._writer.drain()
        finally:
            self._places.release()

    async def _guarded(self, handler: _Handler, message: Message) -> Message:
        try:
            return await handler(self, message)
        except _Invalid:
            return {"error": LinkError.INVALID}
        except AuthorityOverloaded:
            return {"error": LinkError.OVERLOADED}
        except PatgateError as error:
            _log.warning("a worker's request could not be answered", worker=self._worker, error=error)
            return {"error": LinkError.UNAVAILABLE}

    async def _resolve(self, message: Message) -> Message:
        prefixes = _texts(message, "prefixes")
        with self._failures_counted("resolve", len(prefixes)):
            as_of, outcomes = await self._resolver.resolve(prefixes)
        answers: list[Message] = []
        room = TEXTS_AT_ONCE
        for outcome in outcomes:
            if isinstance(outcome, Grant):
                room -= texts_of(outcome)
            if answers and room < 0:
                break  # the worker requests the others again
            answers.append(self._outcome("resolve", outcome))
        return {"as_of": as_of, "found": answers}

    async def _verify(self, message: Message) -> Message:
        prefix, token = _text(message, "prefix"), _text(message, "token")
        with self._failures_counted("verify"):
            resolution = await self._resolver.verify(prefix, token)
        return {"as_of": resolution.as_of, **self._outcome("verify", resolution.outcome)}

    @contextmanager
    def _failures_counted(self, operation: str, prefixes: int = 1) -> Iterator[None]:
        try:
            yield
        except PatgateError:
            self._counters.count(metrics.RESOLVES, operation, "failed", by=prefixes)
            raise

    def _outcome(self, operation: str, outcome: Grant | RefusedGrant) -> Message:
        """Encode one grant or refusal for the worker, and count it."""
        if isinstance(outcome, Grant):
            self._counters.count(metrics.RESOLVES, operation, "grant")
            return {"grant": grant_to_wire(outcome)}
        self._counters.count(metrics.RESOLVES, operation, "refused")
        return {"refused": refused_to_wire(outcome)}

    async def _changes(self, message: Message) -> Message:
        epoch, keys, complete = await self._feed.changes_since(_integer(message, "since"), CHANGES_LIMIT)
        return {"epoch": epoch, "keys": list(keys) if complete else [], "reset": not complete}

    def _push(self, data: bytes) -> None:
        if self._writer.is_closing():
            return
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > BUFFERED:
            _log.warning("a worker does not read its changes and is disconnected", worker=self._worker)
            self._writer.transport.abort()

    def _reply(self, id_: object, reply: Message) -> None:
        """Answer a request; if the answer is too large for a frame, the answer is an error."""
        try:
            self._write({"id": id_, **reply})
        except WireError as error:
            _log.warning("a worker's request could not be answered", worker=self._worker, error=error)
            self._write({"id": id_, "error": LinkError.UNAVAILABLE})

    def _write(self, message: Message) -> None:
        if not self._writer.is_closing():
            self._writer.write(frame(message))


_RECORDED: Final = ("requests", "uses", "reports")
_Handler = Callable[[_Link, Message], Awaitable[Message]]
_ANSWERS: Final[Mapping[str, _Handler]] = MappingProxyType(
    {"resolve": _Link._resolve, "verify": _Link._verify, "changes": _Link._changes}
)


def _text(message: Message, name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str) or len(value) > 1024:
        raise _Invalid
    return value


def _texts(message: Message, name: str) -> list[str]:
    values = message.get(name)
    if not isinstance(values, list) or not 1 <= len(values) <= PREFIXES_AT_ONCE:
        raise _Invalid
    if not all(isinstance(value, str) and len(value) <= 1024 for value in values):
        raise _Invalid
    return values


def _integer(message: Message, name: str) -> int:
    value = message.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise _Invalid
    return value
