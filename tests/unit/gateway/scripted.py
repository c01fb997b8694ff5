"""An authority in the test's own process: it speaks ``core.ipc.wire`` on a unix socket and answers from a script."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from proxy.core.ipc.wire import Deframer, Message, frame, grant_to_wire, refused_to_wire
from proxy.core.model import Grant, RefusedGrant
from proxy.core.reasons import Reason
from tests.unit.gateway.kit import CACHE_KEY

Answering = Callable[[Message], Awaitable[Message | None] | Message | None]


class Authority:
    """Has grants and numbered changes; ``answers`` overrides the response to an operation, and None sends none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epoch = 0
        self.grants: dict[str, Grant | RefusedGrant] = {}
        self.changes: dict[int, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.messages: list[Message] = []
        self.answers: dict[str, Answering] = {}
        self.cache_key = CACHE_KEY
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    async def stop(self) -> None:
        """Stop as after ``kill -9``: refuse new connections, and close the open ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)
        self.hang_up()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def change(self, *keys: str) -> int:
        """Send a committed change to the workers; the caller raises the epoch on the page."""
        self.epoch += 1
        self.changes[self.epoch] = list(keys)
        return self.epoch

    def push(self, message: Message) -> None:
        self.send(frame(message))

    def send(self, data: bytes) -> None:
        """Send these bytes to every worker."""
        for writer in self._writers:
            writer.write(data)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="scripted authority")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        deframer = Deframer()
        try:
            while data := await reader.read(65536):
                for message in deframer.feed(data):
                    self._note(message)
                    task = asyncio.create_task(self._reply(message, writer), name="scripted answer")
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        except ConnectionError:
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    def _note(self, message: Message) -> None:
        self.asked[message["op"]] += 1
        self.messages.append(message)

    async def _reply(self, message: Message, writer: asyncio.StreamWriter) -> None:
        script = self.answers.get(message["op"], self.usual)
        answer = script(message)
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer is not None and "id" in message:
            writer.write(frame({"id": message["id"], **answer}))

    def usual(self, message: Message) -> Message | None:
        """The default response to one request."""
        if message["op"] == "hello":
            return {"epoch": self.epoch, "cache_key": self.cache_key.hex()}
        if message["op"] == "changes":
            since = message["since"]
            keys = [key for number in range(since + 1, self.epoch + 1) for key in self.changes.get(number, [])]
            return {"epoch": self.epoch, "keys": keys, "reset": since > self.epoch}
        if message["op"] == "resolve":
            return self.resolved(message)
        if message["op"] == "verify":
            return {"as_of": self.epoch, **self.found(message["prefix"])}
        return None

    def resolved(self, message: Message, as_of: int | None = None) -> Message:
        """The response to a lookup of prefixes, at the current epoch or another one."""
        found = [self.found(prefix) for prefix in message["prefixes"]]
        return {"as_of": self.epoch if as_of is None else as_of, "found": found}

    def found(self, prefix: str) -> dict[str, Any]:
        held = self.grants.get(prefix)
        if held is None:
            held = RefusedGrant(prefix=prefix, reason=Reason.TOKEN_UNKNOWN, depends=())
        return {"refused": refused_to_wire(held)} if isinstance(held, RefusedGrant) else {"grant": grant_to_wire(held)}


@asynccontextmanager
async def authority_at(path: Path) -> AsyncIterator[Authority]:
    authority = Authority(path)
    await authority.start()
    try:
        yield authority
    finally:
        await authority.stop()
