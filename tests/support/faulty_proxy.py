"""A TCP proxy in front of PostgreSQL that fails on command: it cuts, stalls, delays, and drops notifications.

It is a process of its own (``python -m tests.support.faulty_proxy``), so that it does not compete with the test's
thread and can run in another network namespace. ``FaultyProxy`` starts it and sends it commands, one a line; it answers
each with a line.

It reads the messages of PostgreSQL's protocol 3.0 (type byte, length in four bytes, body) only as far as it must:

* NotificationResponse (``A``) is left out while ``notify`` is off. Everything around it is passed on, so that the
  session works and only the hint is lost.
* CommandComplete (``C``) of a COMMIT is swallowed while ``doubt`` is on, and the connection is cut: the transaction is
  stored and its writer cannot know.
* A Query (``Q``) that is a COMMIT does not reach the server while ``lose`` is on, and the connection is cut: nothing is
  stored and its writer cannot know. A client sends it by itself, in one piece, when it has had every answer before it.
* The first byte of the answer to an SSLRequest or a GSSENCRequest is no message. It is answered by the server and
  passed on; a connection that is encrypted afterwards cannot be filtered and is refused.

Source: PostgreSQL 15 documentation, "Frontend/Backend Protocol", 55.2 and 55.7.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

Direction = Literal["up", "down"]
"""``up`` is from the client to the server."""

ROOT: Final = Path(__file__).resolve().parents[2]
NOTIFICATION: Final = ord("A")
COMPLETE: Final = ord("C")
QUERY: Final = ord("Q")
_ENCRYPTION: Final = frozenset({80877103, 80877104})
"""The codes of SSLRequest and GSSENCRequest."""
_HEAD: Final = struct.Struct("!cI")


@dataclass(slots=True)
class Faults:
    """What fails now, and what has been done so far."""

    cut: bool = False
    stalled: set[str] = field(default_factory=set)
    notify: bool = True
    doubt: bool = False
    lose: bool = False
    slow: float = 0.0
    """By how many seconds what the server sends is late."""
    accepted: int = 0
    notifications: int = 0
    """Notifications that were passed on."""
    dropped: int = 0
    doubted: int = 0
    lost: int = 0
    """COMMITs that did not reach the server."""


class Messages:
    """Splits the bytes from the server into messages and leaves some out. ``feed`` returns what is passed on."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._rest = bytearray()
        self._whole = 0
        """How many bytes of a long message are still passed on unread."""
        self.encryption_asked = False
        self.ended = False
        """Whether the connection ends after what ``feed`` returned."""

    def feed(self, data: bytes) -> bytes:
        """Raises ValueError if the server accepts encryption."""
        if self.encryption_asked and data:
            self.encryption_asked = False
            if data[:1] != b"N":
                raise ValueError("an encrypted connection cannot be filtered")
            return data[:1] + self.feed(data[1:])
        out = bytearray()
        self._rest += data
        while self._rest and not self.ended:
            if self._whole:
                part = self._rest[: self._whole]
                del self._rest[: len(part)]
                self._whole -= len(part)
                out += part
                continue
            if len(self._rest) < _HEAD.size:
                break
            kind, length = self._rest[0], 1 + int.from_bytes(self._rest[1:5], "big")
            if kind not in (NOTIFICATION, COMPLETE):
                self._whole = length
                continue
            if len(self._rest) < length:
                break
            message = bytes(self._rest[:length])
            del self._rest[:length]
            if self._passes(kind, message):
                out += message
        return bytes(out)

    def _passes(self, kind: int, message: bytes) -> bool:
        if kind == NOTIFICATION:
            if self._faults.notify:
                self._faults.notifications += 1
                return True
            self._faults.dropped += 1
            return False
        if self._faults.doubt and message[5:11] == b"COMMIT":
            self._faults.doubted += 1
            self.ended = True
            return False
        return True


class _Side(asyncio.Protocol):
    """One end of a proxied connection."""

    def __init__(self, pair: _Pair, direction: Direction) -> None:
        self.pair = pair
        self.direction = direction
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.pair.made(self)

    def data_received(self, data: bytes) -> None:
        self.pair.received(self, data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.pair.lost()

    def pause_writing(self) -> None:
        self.pair.other(self).flow(False)

    def resume_writing(self) -> None:
        if self.pair.other(self).direction not in self.pair.proxy.faults.stalled:
            self.pair.other(self).flow(True)

    def flow(self, on: bool) -> None:
        if self.transport is not None and not self.transport.is_closing():
            (self.transport.resume_reading if on else self.transport.pause_reading)()


class _Pair:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: _Proxy) -> None:
        self.proxy = proxy
        self.client = _Side(self, "up")
        self.server = _Side(self, "down")
        self._messages = Messages(proxy.faults)
        self._early: list[bytes] = []
        self._first = True
        self._due = 0.0
        """When the last late data is due (event loop's clock)."""
        self._connecting: asyncio.Task[None] | None = None

    def other(self, side: _Side) -> _Side:
        return self.server if side is self.client else self.client

    def made(self, side: _Side) -> None:
        if side.direction in self.proxy.faults.stalled:
            side.flow(False)
        if side is self.client:
            self.proxy.faults.accepted += 1
            self.proxy.pairs.add(self)
            if self.proxy.faults.cut:
                self.abort()
                return
            self._connecting = asyncio.create_task(self._connect(), name="connect")
        else:
            for data in self._early:
                self._write(self.server, data)
            self._early.clear()

    async def _connect(self) -> None:
        try:
            await self.proxy.connect(lambda: self.server)
        except OSError:
            self.abort()

    def received(self, side: _Side, data: bytes) -> None:
        if side is self.client:
            if self._first and len(data) >= 8:
                self._messages.encryption_asked = int.from_bytes(data[4:8], "big") in _ENCRYPTION
                # After a refused request for encryption, the client may send another one.
                self._first = self._messages.encryption_asked
            if self.proxy.faults.lose and data[0] == QUERY and data[5:11] == b"COMMIT":
                self.proxy.faults.lost += 1
                self.abort()
            elif self.server.transport is None:
                self._early.append(data)
            else:
                self._write(self.server, data)
            return
        try:
            passed = self._messages.feed(data)
        except ValueError:
            self.abort()
            return
        if passed:
            self._late(passed)
        if self._messages.ended:
            self.abort()

    def _late(self, data: bytes) -> None:
        """Write to the client: at once, or later if that is a fault now, but never before earlier data."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._due = max(self._due, now + self.proxy.faults.slow)
        if self._due <= now:
            self._write(self.client, data)
        else:
            loop.call_at(self._due, self._write, self.client, data)

    def _write(self, side: _Side, data: bytes) -> None:
        if side.transport is not None and not side.transport.is_closing():
            side.transport.write(data)

    def lost(self) -> None:
        """One side has ended: so does the other, after what has been written to it."""
        self.proxy.pairs.discard(self)
        for side in (self.client, self.server):
            if side.transport is not None and not side.transport.is_closing():
                side.transport.close()

    def abort(self) -> None:
        """Reset both connections."""
        self.proxy.pairs.discard(self)
        for side in (self.client, self.server):
            if side.transport is not None:
                side.transport.abort()


class _Proxy:
    def __init__(self, target: str) -> None:
        self._target = target
        self.faults = Faults()
        self.pairs: set[_Pair] = set()

    def accept(self) -> _Side:
        return _Pair(self).client

    async def connect(self, protocol: Callable[[], _Side]) -> None:
        """To the server: a path of a unix socket, or host and port."""
        loop = asyncio.get_running_loop()
        if self._target.startswith("/"):
            await loop.create_unix_connection(protocol, self._target)
        else:
            host, _, port = self._target.rpartition(":")
            await loop.create_connection(protocol, host, int(port))

    def obey(self, command: str) -> None:
        """Raises ValueError for an unknown command."""
        faults = self.faults
        match command.split():
            case ["cut"]:
                faults.cut = True
                self.drop()
            case ["drop"]:
                self.drop()
            case ["stall", "up" | "down" as direction]:
                faults.stalled.add(direction)
                self._flow(direction, False)
            case ["slow", milliseconds]:
                faults.slow = int(milliseconds) / 1e3
            case ["release", "up" | "down" as direction]:
                self._release(direction)
            case ["notify", "on" | "off" as how]:
                faults.notify = how == "on"
            case ["doubt", "on" | "off" as how]:
                faults.doubt = how == "on"
            case ["lose", "on" | "off" as how]:
                faults.lose = how == "on"
            case ["mend"]:
                faults.cut, faults.notify, faults.doubt, faults.lose, faults.slow = False, True, False, False, 0.0
                for each in list(faults.stalled):
                    self._release(each)
            case ["report"]:
                pass
            case _:
                raise ValueError(command)

    def _release(self, direction: str) -> None:
        self.faults.stalled.discard(direction)
        self._flow(direction, True)

    def drop(self) -> None:
        for pair in list(self.pairs):
            pair.abort()

    def _flow(self, direction: str, on: bool) -> None:
        for pair in list(self.pairs):
            (pair.client if direction == "up" else pair.server).flow(on)


async def serve(address: str, target: str) -> None:
    """Listen on host and port (0: any), print the port, and obey the commands of standard input until it ends."""
    proxy = _Proxy(target)
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(proxy.accept, host, int(port))
    print(server.sockets[0].getsockname()[1], flush=True)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        proxy.obey(line.decode().strip())
        print(json.dumps(asdict(proxy.faults) | {"stalled": sorted(proxy.faults.stalled)}), flush=True)
    server.close()
    proxy.drop()


class FaultyProxy:
    """The proxy, running in a process; a context manager. ``prefix`` may run it in another network namespace."""

    def __init__(self, target: str, *, host: str = "127.0.0.1", port: int = 0, prefix: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.support.faulty_proxy", f"{host}:{port}", target],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.host = host
        try:
            self.port = int(self._answer())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def command(self, command: str) -> dict[str, object]:
        """Have it obey, and return what fails now and what it has counted (``Faults``)."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._answer())
        assert isinstance(answer, dict)
        return answer

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the proxy has ended: {self._process.poll()}"
        return line

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
