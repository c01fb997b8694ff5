"""Clients that abort their exchange, or whose backend does: every way to end an exchange badly, repeated.

Each exchange has a connection of its own. The only assertions are those behind which a leak could hide: the gateway
answers every request that can be answered, and ends every connection within the deadline.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Final

import uvloop

from bench.backends.faulty import BLOCK, CLOSE, CUT, Behaviour
from bench.errors import BenchError
from bench.load.token_generator import unknown_tokens
from bench.testbed import LOOPBACK

CONCURRENCY: Final = 24
DEADLINE_SECONDS: Final = 120.0
_RESET: Final = struct.pack("ii", 1, 0)
_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
_GREETING: Final = b"\x81\x85\0\0\0\0hello"


class Client:
    """One connection with a valid token, and the operations on it."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str, unknown_token: bytes
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.token = token
        self.unknown_token = unknown_token

    def ask(
        self, behaviour: Behaviour, *fields: str, method: str = "GET", token: str | None = None, version: str = "1.1"
    ) -> None:
        """Send a whole head."""
        lines = [
            f"{method} /v1/faulty/{behaviour} HTTP/{version}",
            "Host: soak",
            f"Authorization: Bearer {self.token if token is None else token}",
            *fields,
        ]
        self.writer.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode())

    async def answer(self, *statuses: int) -> None:
        """Read the head of an answer. Raises BenchError for a status that is not among ``statuses``."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        if int(head[9:12]) not in statuses:
            raise BenchError(f"An answer's status was {head[9:12].decode()} and not among {statuses}.")

    def reset(self) -> None:
        """Reset the connection at once."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.writer.transport.abort()

    async def ended(self) -> None:
        """Wait for the gateway to end the connection."""
        with suppress(OSError):
            while await self.reader.read(1 << 18):
                pass


async def leaves_within_the_head(client: Client) -> None:
    client.writer.write(b"GET /v1/things/1 HTTP/1.1\r\nHost: soak\r\nAuthoriz")
    await client.writer.drain()


async def resets_within_the_head(client: Client) -> None:
    await leaves_within_the_head(client)
    client.reset()


async def leaves_within_a_length(client: Client) -> None:
    client.ask(Behaviour.ANSWER, "Content-Length: 1000000", method="PUT")
    client.writer.write(BLOCK)
    await client.writer.drain()


async def resets_within_chunks(client: Client) -> None:
    client.ask(Behaviour.ANSWER, "Transfer-Encoding: chunked", method="PUT")
    client.writer.write(b"10000\r\n" + BLOCK + b"\r\n400\r\nnot so much")
    await client.writer.drain()
    client.reset()


async def leaves_before_the_answer(client: Client) -> None:
    client.ask(Behaviour.SILENT)
    await client.writer.drain()
    await asyncio.sleep(0.002)


async def leaves_while_it_is_looked_up(client: Client) -> None:
    client.ask(Behaviour.ANSWER, token=client.unknown_token.decode())
    await client.writer.drain()
    client.reset()


async def resets_within_the_answer(client: Client) -> None:
    client.ask(Behaviour.LARGE)
    await client.answer(200)
    await client.reader.read(1000)
    client.reset()


async def half_closes(client: Client) -> None:
    # The gateway treats this as a disconnect, unless the answer came before.
    client.ask(Behaviour.ANSWER)
    client.writer.write_eof()
    await client.ended()


async def reads_all(client: Client) -> None:
    client.ask(Behaviour.LARGE, "Connection: close")
    await client.answer(200)
    await client.ended()


async def uploads(client: Client) -> None:
    client.ask(Behaviour.ANSWER, f"Content-Length: {4 * len(BLOCK)}", method="PUT")
    client.writer.write(BLOCK * 4)
    await client.answer(200)


async def uploads_chunks(client: Client) -> None:
    client.ask(Behaviour.ANSWER, "Transfer-Encoding: chunked", method="PUT")
    client.writer.write(b"10000;extended=yes\r\n" + BLOCK + b"\r\n0\r\nX-Trailer: yes\r\n\r\n")
    await client.answer(200)


async def is_answered_early(client: Client) -> None:
    client.ask(Behaviour.EARLY, "Content-Length: 1000000", method="PUT")
    client.writer.write(BLOCK)
    await client.answer(200)
    await client.ended()


async def expects(client: Client) -> None:
    client.ask(Behaviour.ANSWER, "Content-Length: 5", "Expect: 100-continue", method="PUT")
    await asyncio.sleep(0.001)
    client.writer.write(b"hello")
    await client.answer(100, 200)


async def is_old(client: Client) -> None:
    client.ask(Behaviour.UNTIL_CLOSE, version="1.0")
    await client.answer(200)
    await client.ended()


async def reads_until_close(client: Client) -> None:
    client.ask(Behaviour.UNTIL_CLOSE, "Connection: close")
    await client.answer(200)
    await client.ended()


async def is_malformed(client: Client) -> None:
    client.writer.write(b"GET /v1//things HTTP/1.1\r\nHost: soak\r\nContent-Length: +1\r\n\r\n")
    await client.answer(400)
    await client.ended()


async def breaks_its_chunks(client: Client) -> None:
    client.ask(Behaviour.ANSWER, "Transfer-Encoding: chunked", method="PUT")
    client.writer.write(b"5\r\nhelloworld\r\n")
    await client.answer(400)
    await client.ended()


async def has_an_unknown_token(client: Client) -> None:
    client.ask(Behaviour.ANSWER, token=client.unknown_token.decode())
    await client.answer(401, 503)


def _backend(behaviour: Behaviour, *statuses: int) -> Callable[[Client], Awaitable[None]]:
    async def meets(client: Client) -> None:
        client.ask(behaviour)
        await client.answer(*statuses)
        if behaviour is not Behaviour.EXCESS:
            client.writer.write_eof()
            await client.ended()

    meets.__name__ = f"meets_{behaviour}"
    return meets


def _tunnel(ending: Callable[[Client], Awaitable[None]], name: str) -> Callable[[Client], Awaitable[None]]:
    async def tunnels(client: Client) -> None:
        client.ask(
            Behaviour.TUNNEL,
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {_KEY}",
        )
        await client.answer(101)
        client.writer.write(_GREETING)
        await client.reader.readexactly(len(_GREETING))
        await ending(client)

    tunnels.__name__ = f"tunnels_and_{name}"
    return tunnels


async def _sends(client: Client, message: bytes) -> None:
    client.writer.write(message)
    await client.ended()


async def _resets(client: Client) -> None:
    client.reset()


async def _leaves(client: Client) -> None:
    client.writer.write_eof()
    await client.ended()


MANNERS: Final = (
    leaves_within_the_head,
    resets_within_the_head,
    leaves_within_a_length,
    resets_within_chunks,
    leaves_before_the_answer,
    leaves_while_it_is_looked_up,
    resets_within_the_answer,
    half_closes,
    reads_all,
    uploads,
    uploads_chunks,
    is_answered_early,
    expects,
    is_old,
    reads_until_close,
    is_malformed,
    breaks_its_chunks,
    has_an_unknown_token,
    _backend(Behaviour.RESET, 502),
    _backend(Behaviour.HALF_HEAD, 502),
    _backend(Behaviour.HALF_BODY, 200),
    _backend(Behaviour.HALF_CHUNKS, 200, 502),
    _backend(Behaviour.GARBAGE, 502),
    _backend(Behaviour.EXCESS, 200, 502),
    _tunnel(_leaves, "leaves"),
    _tunnel(_resets, "resets"),
    _tunnel(lambda client: _sends(client, CLOSE), "is_left"),
    _tunnel(lambda client: _sends(client, CUT), "is_cut"),
)


def aborting_clients(pipe: Connection, port: int, tokens: tuple[str, ...], seed: int) -> None:
    """For each number received, run so many exchanges, drawn from ``MANNERS``; send how many of each there were.

    Sends a BenchError instead if an exchange did not end as it has to.
    """
    uvloop.run(_serve(pipe, _Clients(port, tokens, seed)))


class _Clients:
    def __init__(self, port: int, tokens: tuple[str, ...], seed: int) -> None:
        self._port = port
        self._tokens = tokens
        self._random = random.Random(seed)
        self._unknown = unknown_tokens(seed)
        self._left = 0
        self.made: Counter[str] = Counter()

    async def make(self, count: int) -> Mapping[str, int]:
        self._left = count
        self.made.clear()
        async with asyncio.TaskGroup() as group:
            for number in range(CONCURRENCY):
                group.create_task(self._repeat(), name=f"aborting client {number}")
        return dict(self.made)

    async def _repeat(self) -> None:
        while self._left > 0:
            self._left -= 1
            manner = MANNERS[self._random.randrange(len(MANNERS))]
            try:
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await self._one(manner)
            except TimeoutError:
                raise BenchError(f"An exchange that {manner.__name__} did not end in time.") from None
            except asyncio.IncompleteReadError:
                raise BenchError(f"An exchange that {manner.__name__} had no answer.") from None
            except BenchError as error:
                raise BenchError(f"In an exchange that {manner.__name__}: {error}") from None
            self.made[manner.__name__] += 1

    async def _one(self, manner: Callable[[Client], Awaitable[None]]) -> None:
        reader, writer = await asyncio.open_connection(LOOPBACK, self._port)
        client = Client(reader, writer, self._random.choice(self._tokens), next(self._unknown))
        try:
            await manner(client)
        finally:
            writer.close()


async def _serve(pipe: Connection, clients: _Clients) -> None:
    loop = asyncio.get_running_loop()
    while True:
        arrived = asyncio.Event()
        loop.add_reader(pipe.fileno(), arrived.set)
        await arrived.wait()
        loop.remove_reader(pipe.fileno())
        try:
            count = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(await clients.make(count))
        except* BenchError as errors:
            pipe.send(errors.exceptions[0])
