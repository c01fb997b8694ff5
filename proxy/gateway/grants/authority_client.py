"""The worker's client of the authority: requests, answers and pushed changes over one unix socket (``core.ipc.wire``).

Rules of this module:
1. An answer belongs to the request whose number it carries; an answer that arrives after its caller gave up is dropped.
2. The client reconnects for ever. A request that finds the link down, or loses it, waits a short time for the next
   greeting and then gets ``AuthorityUnavailable``. The number of waiting requests is bounded.
3. Changes are applied in the order of their numbers, pushed or fetched. A push that does not continue from the cache's
   last change is not applied; the gap is fetched instead.
4. Lookups wait in two queues (``lookup_queue``) with one request in progress each, so that lookups of unknown prefixes
   never delay those of prefixes that were good until a change.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from proxy.core.errors import AuthorityError, AuthorityOverloaded, AuthorityUnavailable, WireError
from proxy.core.ipc.wire import Deframer, frame, grant_from_wire, refused_from_wire
from proxy.gateway.grants.cache import GrantCache
from proxy.gateway.grants.lookup_queue import LookupAnswer, LookupQueue, Outcome
from proxy.observe import defects

_SHORTEST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 0.25
_PATIENCE_SECONDS: Final = 1.0
"""How long a request waits for a link that is down: a new authority greets its workers well within this time."""
_ANSWER_SECONDS: Final = 5.0
_PENDING_LIMIT: Final = 1024
_BUFFERED: Final = 1024 * 1024
"""Unsent bytes to an authority that does not read, before the worker sends no more reports."""
_CLOSED: Final = (OSError, RuntimeError)
"""Errors of a transport that has closed before its stream knows. uvloop raises RuntimeError then."""
_LOST: Final = "the link to the authority is down"
_UNREADABLE: Final = "the authority's answer cannot be read"


class _LinkLost(AuthorityUnavailable):
    """The connection ended before the answer; no request changes anything, so it may be sent again."""


class AuthorityLink:
    """A connection to the authority that reconnects by itself.

    ``on_state`` is called with True when the authority has greeted this worker and with False when that link is lost,
    but not for failed attempts.
    """

    def __init__(
        self, path: Path, *, slot: int, cache: GrantCache, on_state: Callable[[bool], None] | None = None
    ) -> None:
        self._path = path
        self._slot = slot
        self._cache = cache
        self._on_state = on_state
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._syncing: asyncio.Task[None] | None = None
        self._number = 0
        self._runner: asyncio.Task[None] | None = None
        self._greeted = asyncio.Event()
        self._wanted = asyncio.Event()
        self._patient = 0
        self._behind: list[tuple[int, asyncio.Future[None]]] = []
        self._strangers = LookupQueue(self._resolve)
        self._acquainted = LookupQueue(self._resolve)
        self.cache_key = b""

    @property
    def up(self) -> bool:
        """Whether the authority has greeted this worker on the current connection."""
        return self._greeted.is_set()

    def start(self) -> None:
        """Connect, and reconnect whenever the link is lost."""
        self._runner = asyncio.create_task(self._run(), name="authority link")
        self._runner.add_done_callback(defects.noted)

    async def close(self) -> None:
        """Stop reconnecting and close the connection."""
        tasks = [t for t in (self._runner, self._syncing) if t is not None]
        self._runner = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self._strangers.close(), self._acquainted.close(), return_exceptions=True)
        self._lost()

    async def lookup(self, prefix: str, *, known: bool = False) -> LookupAnswer:
        """Look up the grant of ``prefix``; ``known`` if it was good until a change.

        Raises AuthorityUnavailable, AuthorityOverloaded.
        """
        if known:
            return await self._acquainted.answer(prefix)
        if len(self._strangers) >= _PENDING_LIMIT and prefix not in self._strangers:
            raise AuthorityOverloaded("too many lookups of unknown prefixes are waiting")
        return await self._strangers.answer(prefix)

    async def verify(self, prefix: str, token: str) -> LookupAnswer:
        """Let the authority verify ``token`` against its stored hash.

        Raises AuthorityUnavailable, AuthorityOverloaded.
        """
        if len(self._waiting) + self._patient >= _PENDING_LIMIT:
            raise AuthorityOverloaded("too many requests to the authority are waiting")
        answer = await self._ask({"op": "verify", "prefix": prefix, "token": token}, seconds=15.0)
        found = _answer(prefix, answer, answer.get("as_of"))
        if isinstance(found, LookupAnswer):
            return found
        raise found

    async def sync(self, epoch: int) -> None:
        """Return when the cache has applied the changes up to ``epoch``. Raises AuthorityUnavailable."""
        if self._cache.applied >= epoch:
            return
        syncing = self._syncing
        if syncing is None or syncing.done():
            self._syncing = syncing = asyncio.create_task(self._sync(), name="change sync")
            syncing.add_done_callback(_retrieved)
        moved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (epoch, moved)
        self._behind.append(waiting)
        try:
            await asyncio.wait((moved, syncing), return_when=asyncio.FIRST_COMPLETED)
            if not moved.done():
                # This sync has ended, and its error is raised here. ``self._syncing`` may be another one by now:
                # a caller that is cancelled while it awaits that would cancel it for all.
                await syncing
        finally:
            self._behind.remove(waiting)

    def _moved(self) -> None:
        """Wake the callers of ``sync`` that wait for no later change than the cache has applied."""
        for epoch, moved in self._behind:
            if epoch <= self._cache.applied and not moved.done():
                moved.set_result(None)

    def send_counters(self, snapshot: dict[str, Any]) -> None:
        """Send the worker's counters, without an answer; they are skipped while the link has no room."""
        if self.has_room:
            self.report(frame({"op": "counters", "snapshot": snapshot}))

    @property
    def has_room(self) -> bool:
        """Whether the link is up and has room for reports."""
        writer = self._writer
        return self.up and writer is not None and writer.transport.get_write_buffer_size() < _BUFFERED

    def report(self, message: bytes) -> None:
        """Send a framed message that has no answer; without a link it is lost (``has_room``)."""
        if self.up and self._writer is not None:
            with contextlib.suppress(_LinkLost):
                self._send(self._writer, message)

    async def flush(self, seconds: float) -> None:
        """Wait until everything is sent, for ``seconds`` at most."""
        writer = self._writer
        if writer is None:
            return
        with contextlib.suppress(*_CLOSED, TimeoutError):
            writer.transport.set_write_buffer_limits(high=0)
            async with asyncio.timeout(seconds):
                await writer.drain()

    async def _resolve(self, prefixes: list[str]) -> Sequence[Outcome]:
        try:
            answer = await self._ask({"op": "resolve", "prefixes": prefixes})
            outcomes = [_answer(*one, answer["as_of"]) for one in zip(prefixes, answer["found"], strict=False)]
        except (AuthorityUnavailable, AuthorityOverloaded) as error:
            return [error] * len(prefixes)
        except (KeyError, TypeError):
            outcomes = []
        return outcomes or [AuthorityUnavailable(_UNREADABLE)] * len(prefixes)

    async def _sync(self) -> None:
        answer = await self._ask({"op": "changes", "since": self._cache.applied})
        try:
            self._absorb(answer)
        except (KeyError, TypeError):
            raise AuthorityUnavailable(_UNREADABLE) from None

    def _absorb(self, answer: dict[str, Any]) -> None:
        if answer["reset"]:
            self._cache.reset(answer["epoch"])
        else:
            self._cache.apply(answer["keys"], answer["epoch"])
        self._moved()

    async def _ask(self, request: dict[str, Any], *, seconds: float = _ANSWER_SECONDS) -> dict[str, Any]:
        """The answer to a request, on this connection or, if it is lost meanwhile, on the next one."""
        give_up = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        while True:
            await self._linked(give_up)
            try:
                return await self._exchange(request, seconds)
            except _LinkLost:
                if asyncio.get_running_loop().time() >= give_up:
                    raise

    async def _linked(self, give_up: float) -> None:
        """Return once the link is up. Raises AuthorityUnavailable when it is not by ``give_up`` (loop time)."""
        if self._greeted.is_set():
            return
        if self._runner is None:
            raise AuthorityUnavailable(_LOST)
        self._patient += 1
        self._wanted.set()
        try:
            async with asyncio.timeout_at(give_up):
                await self._greeted.wait()
        except TimeoutError:
            raise AuthorityUnavailable(_LOST) from None
        finally:
            self._patient -= 1

    async def _exchange(self, request: dict[str, Any], seconds: float = _ANSWER_SECONDS) -> dict[str, Any]:
        """Send a request on the current connection and return its answer.

        Raises AuthorityUnavailable, AuthorityOverloaded.
        """
        writer = self._writer
        if writer is None:
            raise _LinkLost(_LOST)
        self._number += 1
        number = self._number
        self._send(writer, frame({"id": number, **request}))
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            async with asyncio.timeout(seconds):
                answer = await future
        except TimeoutError:
            raise AuthorityUnavailable("the authority did not answer in time") from None
        finally:
            self._waiting.pop(number, None)
        if "error" in answer:
            if answer["error"] == "overloaded":
                raise AuthorityOverloaded("the authority has no capacity left")
            raise AuthorityUnavailable("the authority could not answer")
        return answer

    def _send(self, writer: asyncio.StreamWriter, message: bytes) -> None:
        """Write a message on the current connection. Raises only _LinkLost, and then the link is down."""
        try:
            if writer.is_closing():
                raise ConnectionResetError
            writer.write(message)
        except _CLOSED:
            # At once and not when the reader notices: until then a retry would use the same connection.
            self._lost()
            raise _LinkLost(_LOST) from None

    async def _run(self) -> None:
        pause = _SHORTEST_PAUSE_SECONDS
        while True:
            if await self._hold():
                pause = _SHORTEST_PAUSE_SECONDS
            await self._pause(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _hold(self) -> bool:
        """Keep one connection until it ends; returns whether the authority greeted this worker on it."""
        greeted = False
        try:
            reader, self._writer = await asyncio.open_unix_connection(self._path)
            reading = asyncio.create_task(self._read(reader), name="authority link reader")
            # When the reader ends, requests that wait for an answer fail, the greeting included.
            reading.add_done_callback(lambda _: self._abandon())
            try:
                await self._greet()
                greeted = True
                await reading
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        except (OSError, AuthorityError, WireError, KeyError, ValueError):
            # Whatever the cause, the remedy is the same: close, fail the waiting requests, reconnect.
            pass
        except Exception as error:  # noqa: BLE001 - a worker that never links again refuses everything for ever
            defects.report("the link to the authority failed", error)
        finally:
            self._lost()
        return greeted

    async def _pause(self, seconds: float) -> None:
        """Wait before the next attempt: ``seconds``, or the shortest pause as soon as a request is waiting."""
        await asyncio.sleep(_SHORTEST_PAUSE_SECONDS)
        self._wanted.clear()
        if self._patient == 0 and seconds > _SHORTEST_PAUSE_SECONDS:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds - _SHORTEST_PAUSE_SECONDS):
                    await self._wanted.wait()

    async def _greet(self) -> None:
        hello = {"op": "hello", "worker": self._slot, "pid": os.getpid(), "applied": max(0, self._cache.applied)}
        answer = await self._exchange(hello)
        key = bytes.fromhex(answer["cache_key"])
        if key != self.cache_key:
            # Digests made with the old key verify nothing.
            self._cache.reset(answer["epoch"])
            self.cache_key = key
        else:
            self._absorb(await self._exchange({"op": "changes", "since": self._cache.applied}))
        self._greeted.set()
        if self._on_state is not None:
            self._on_state(True)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        deframer = Deframer()
        while data := await reader.read(65536):
            for message in deframer.feed(data):
                if "push" in message:
                    self._pushed(message)
                    continue
                future = self._waiting.get(message["id"])
                if future is not None and not future.done():
                    future.set_result(message)
        raise AuthorityUnavailable(_LOST)

    def _pushed(self, message: dict[str, Any]) -> None:
        if message["push"] != "changes" or not self.cache_key:
            return
        if message["since"] <= self._cache.applied:
            if message["epoch"] > self._cache.applied:
                self._cache.apply(message["keys"], message["epoch"])
                self._moved()
        elif self._syncing is None or self._syncing.done():
            self._syncing = asyncio.create_task(self._sync_quietly(), name="change sync")
            self._syncing.add_done_callback(defects.noted)

    async def _sync_quietly(self) -> None:
        try:
            await self._sync()
        except (AuthorityUnavailable, AuthorityOverloaded):
            # Nothing is lost: the epoch on the page still differs, so the next request fetches the changes.
            return

    def _lost(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        if self._greeted.is_set():
            self._greeted.clear()
            if self._on_state is not None:
                self._on_state(False)
        self._abandon()

    def _abandon(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(_LinkLost(_LOST))


def _answer(prefix: str, answer: dict[str, Any], as_of: object) -> LookupAnswer | AuthorityUnavailable:
    """The grant or refusal of ``prefix`` in a message, or the error that it cannot be read."""
    try:
        found = grant_from_wire(answer["grant"]) if "grant" in answer else refused_from_wire(answer["refused"])
    except (KeyError, TypeError, WireError):
        return AuthorityUnavailable(_UNREADABLE)
    if found.prefix != prefix or not isinstance(as_of, int):
        return AuthorityUnavailable(_UNREADABLE)
    return LookupAnswer(as_of, found)


def _retrieved(task: asyncio.Task[None]) -> None:
    """Retrieve a task's exception, so that asyncio does not report it: a push may have served its callers."""
    if not task.cancelled():
        task.exception()
