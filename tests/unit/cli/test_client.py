"""The client of the control socket with a server that misbehaves."""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.cli.client import ANSWER_SECONDS, Control
from proxy.core.errors import AuthorityUnavailable

SECONDS = ANSWER_SECONDS / 2
"""Less than the time a command waits for a response, and longer than a busy machine takes."""


@asynccontextmanager
async def other_end(play: Callable[[socket.socket], object]) -> AsyncIterator[Control]:
    """A client whose server reads a request and then runs ``play`` on the connection."""
    # Not tmp_path: the path of a unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg") as name, socket.socket(socket.AF_UNIX) as listener:
        path = Path(name) / "control.sock"
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)

        async def answer() -> None:
            loop = asyncio.get_running_loop()
            connection, _ = await loop.sock_accept(listener)
            with connection:
                await loop.sock_recv(connection, 65536)
                play(connection)
                # Wait until the client has disconnected.
                while await loop.sock_recv(connection, 65536):
                    pass

        answering = asyncio.create_task(answer())
        try:
            yield Control(path)
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(answering, return_exceptions=True)
        finally:
            answering.cancel()


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{", b"+OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a" * 100_000],
    ids=["none", "half", "another protocol", "endless head"],
)
async def test_an_invalid_response_is_reported_as_no_answer(answer: bytes) -> None:
    def play(connection: socket.socket) -> None:
        connection.setblocking(True)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        connection.setblocking(False)

    async with other_end(play) as control:
        with pytest.raises(AuthorityUnavailable, match="does not answer"):
            await control.get("/tokens")


async def test_waiting_for_a_response_can_be_cancelled() -> None:
    """A thread waits for the response, and the end of the event loop waits for its threads."""
    asked = asyncio.Event()
    async with other_end(lambda _: asked.set()) as control:
        waiting = asyncio.create_task(control.get("/tokens"))
        await asyncio.wait_for(asked.wait(), SECONDS)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), SECONDS)


async def test_without_a_listener_the_gateway_is_reported_as_not_answering(tmp_path: Path) -> None:
    control = Control(tmp_path / "control.sock")
    with pytest.raises(AuthorityUnavailable, match=r"control\.sock"):
        await control.get("/tokens")
    assert not await control.healthy("/livez")
