"""Request bodies of the control API that end early or break the framing: the client's fault, and no defect."""

from __future__ import annotations

import socket
import struct

import pytest

from proxy.observe import defects
from tests.unit.authority.waiting import until
from tests.unit.control.api_client import API, minted, person
from tests.unit.control.conftest import World
from tests.unit.control.test_connections import answer, connected

LENGTH = "Content-Length: 100"
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """The defects that were reported."""
    found: list[BaseException] = []
    monkeypatch.setattr(defects, "report", lambda _event, error, **_facts: found.append(error))
    return found


async def head(world: World, *lines: str) -> bytes:
    await person(world, "root@example.org", "admin")
    token = (await minted(world, "root@example.org"))["token"]
    first = [f"POST {API}/orgs HTTP/1.1", "Host: localhost", f"X-API-Key: {token}", "Content-Type: application/json"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


@pytest.mark.parametrize(("line", "body"), [(LENGTH, b"{"), (CHUNKED, b"5\r\n{"), (CHUNKED, b"1\r\n{\r\n")])
@pytest.mark.parametrize("resets", [False, True], ids=["closes", "resets"])
async def test_a_client_that_leaves_in_its_body_is_no_defect(
    line: str, body: bytes, resets: bool, world: World, reported: list[BaseException]
) -> None:
    (listener,) = world.listeners
    async with connected(world) as (_, writer):
        writer.write(await head(world, line) + body)
        await until(lambda: any(one._current_request is not None for one in listener._idle))
        if resets:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
    await until(lambda: len(listener) == 0)
    async with world.tcp.get("/livez") as live:
        assert live.status == 200
    assert reported == []


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ([CHUNKED], b"Z\r\n{}\r\n0\r\n\r\n"),
        ([CHUNKED], b"2\r\n{}xx0\r\n\r\n"),
        ([CHUNKED], b"2;\x00\r\n{}\r\n0\r\n\r\n"),
        ([CHUNKED], b"2\r\n{}\r\n0\r\nno field\r\n\r\n"),
        ([LENGTH.replace("100", "9"), "Content-Encoding: gzip"], b"not gzip!"),
        ([LENGTH.replace("100", "9"), "Content-Encoding: br"], b"not br..!"),
        ([LENGTH.replace("100", "9"), "Content-Encoding: zstd"], b"not zstd!"),
        ([LENGTH.replace("100", "9"), "Content-Encoding: deflate"], b"not defl!"),
    ],
    ids=repr,
)
async def test_a_body_that_breaks_its_framing_or_encoding_is_refused_and_no_defect(
    lines: list[str], body: bytes, world: World, reported: list[BaseException]
) -> None:
    async with connected(world) as (reader, writer):
        writer.write(await head(world, *lines) + body)
        assert (await answer(reader)).split(b" ")[1] in (b"400", b"415")
    assert reported == []
