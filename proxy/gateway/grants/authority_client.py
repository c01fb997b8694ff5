"""The worker's end of the link to the authority: one unix socket, length-prefixed frames (``core.wire``).

Rules of this module:
1. An answer belongs to the request whose number it carries; one that comes after its waiter gave up is dropped.
2. The link mends itself, for ever. A question that finds it down, or loses it, waits for the next greeting, but not
   for long: then it gets ``AuthorityUnavailable``. How many may wait is bounded.
3. Changes are applied in the order of their numbers, whoever sent them. A push that does not continue where the cache
   stands is not applied; the gap is fetched instead.
4. Lookups wait in two queues (``lookups``), each with one question under way: strangers never stand before those who
   were good until a change.
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
"""How long a question waits for a link that is down: a new authority greets its workers well within it."""
_ANSWER_SECONDS: Final = 5.0
_PENDING_LIMIT: Final = 1024
_BUFFERED: Final = 1024 * 1024
"""Bytes on their way to an authority that does not read them, before it is told no more."""
_CLOSED: Final = (OSError, RuntimeError)
"""What a transport raises that has ended before its stream heard of it. uvloop's raise RuntimeError then."""
_LOST: Final = "the link to the authority is down"
_UNREADABLE: Final = "the authority's answer cannot be read"


class _LinkLost(AuthorityUnavailable):
    """The connection ended with the question unanswered; no question changes anything, so it may be asked again."""


class AuthorityLink:
    """A connection to the authority that mends itself.

    ``on_state`` hears True when the authority has greeted this worker and False when that link is lost, not of
    attempts.
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
        """Whether the authority has greeted this worker on the present connection."""
        return self._greeted.is_set()

    def start(self) -> None:
        """Begin to connect, and to reconnect whenever the link is lost."""
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
        """Ask for the grant of ``prefix``; ``known`` if it was good lately.

        Raises AuthorityUnavailable, AuthorityOverloaded.
        """
        if known:
            return await self._acquainted.answer(prefix)
        if len(self._strangers) >= _PENDING_LIMIT and prefix not in self._strangers:
            raise AuthorityOverloaded("too many lookups of unknown prefixes are waiting")
        return await self._strangers.answer(prefix)

    async def verify(self, prefix: str, token: str) -> LookupAnswer:
        """Have the authority verify ``token`` with its hash at rest. Raises AuthorityUnavailable,
        AuthorityOverloaded.
        """
        if len(self._waiting) + self._patient >= _PENDING_LIMIT:
            raise AuthorityOverloaded("too many questions to the authority are waiting")
        answer = await self._ask({"op": "verify", "prefix": prefix, "token": token}, seconds=15.0)
        found = _answer(prefix, answer, answer.get("as_of"))
        if isinstance(found, LookupAnswer):
            return found
        raise found

    async def sync(self, epoch: int) -> None:
        """Return when the cache has the changes up to ``epoch``, pushed or fetched. Raises AuthorityUnavailable."""
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
                # It has ended. Another may have begun since: whoever gave up waiting for that would end it for all.
                await syncing
        finally:
            self._behind.remove(waiting)

    def _moved(self) -> None:
        """The cache has applied changes: whoever waits for no more than these goes on."""
        for epoch, moved in self._behind:
            if epoch <= self._cache.applied and not moved.done():
                moved.set_result(None)

    def send_counters(self, snapshot: dict[str, Any]) -> None:
        """Send the worker's counters; nothing comes back, and nothing is sent while the link takes nothing."""
        if self.has_room:
            self.tell(frame({"op": "counters", "snapshot": snapshot}))

    @property
    def has_room(self) -> bool:
        """Whether the authority takes what this worker has to tell: the link is up, and not much waits on it."""
        writer = self._writer
        return self.up and writer is not None and writer.transport.get_write_buffer_size() < _BUFFERED

    def tell(self, message: bytes) -> None:
        """Send a framed message that nobody answers; without a link it is lost (``has_room``)."""
        if self.up and self._writer is not None:
            with contextlib.suppress(_LinkLost):
                self._send(self._writer, message)

    async def flush(self, seconds: float) -> None:
        """Wait until everything is on its way, for so long at most."""
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
        """The answer to a question, from this link or, where it is lost meanwhile, from the next one."""
        give_up = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        while True:
            await self._linked(give_up)
            try:
                return await self._exchange(request, seconds)
            except _LinkLost:
                if asyncio.get_running_loop().time() >= give_up:
                    raise

    async def _linked(self, give_up: float) -> None:
        """Return once there is a link to ask on. Raises AuthorityUnavailable when there is none by ``give_up``."""
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
        """Ask on the present connection. Raises AuthorityUnavailable, AuthorityOverloaded."""
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
        """Write a message on the present connection. Raises _LinkLost and nothing else, and then the link is down."""
        try:
            if writer.is_closing():
                raise ConnectionResetError
            writer.write(message)
        except _CLOSED:
            # Not only when its reader finds out: until then, who asks again would ask on the same connection.
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
        """One connection from its beginning to its end; whether the authority greeted this worker on it."""
        greeted = False
        try:
            reader, self._writer = await asyncio.open_unix_connection(self._path)
            reading = asyncio.create_task(self._read(reader), name="authority link reader")
            # Who waits must not wait for what nobody reads any more; the greeting is one of them.
            reading.add_done_callback(lambda _: self._abandon())
            try:
                await self._greet()
                greeted = True
                await reading
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        except (OSError, AuthorityError, WireError, KeyError, ValueError):
            # Whatever broke it, the cure is the same: close, tell the waiters, connect anew.
            pass
        except Exception as error:  # noqa: BLE001 - a worker that never links again refuses everything for ever
            defects.report("the link to the authority failed", error)
        finally:
            self._lost()
        return greeted

    async def _pause(self, seconds: float) -> None:
        """Wait before the next attempt: ``seconds``, or the shortest pause as soon as a question is waiting."""
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
            # Digests made with another key verify nothing.
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
            # Nothing is lost: the epoch on the page still differs, so the next request fetches them.
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
    """The grant or refusal of ``prefix`` as it crossed the link, or that it cannot be read."""
    try:
        found = grant_from_wire(answer["grant"]) if "grant" in answer else refused_from_wire(answer["refused"])
    except (KeyError, TypeError, WireError):
        return AuthorityUnavailable(_UNREADABLE)
    if found.prefix != prefix or not isinstance(as_of, int):
        return AuthorityUnavailable(_UNREADABLE)
    return LookupAnswer(as_of, found)


def _retrieved(task: asyncio.Task[None]) -> None:
    """Take note of a task's failure: whoever waited may have been served by a push meanwhile."""
    if not task.cancelled():
        task.exception()
