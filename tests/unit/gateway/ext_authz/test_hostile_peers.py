"""Peers that do not read, do not end, lie or break a rule: what they can keep is bounded, and nobody else notices."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from proxy.gateway.ext_authz import connection as served
from proxy.gateway.ext_authz import listener as deciding
from proxy.gateway.ext_authz.messages import read_call
from proxy.observe import defects
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.ext_authz.calls import METHOD, check
from tests.unit.gateway.ext_authz.test_connection import Place, place, raw
from tests.unit.gateway.kit import until

OPEN = check(path=b"/open/x")


class Mute:
    """A peer that writes and never reads."""

    def __init__(self, port: int) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setblocking(False)
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
        self.h2.initiate_connection()

    def begin(self, message: bytes) -> bytes:
        """The bytes of a call."""
        number = self.h2.get_next_available_stream_id()
        fields = {":method": "POST", ":scheme": "http", ":path": METHOD.decode(), ":authority": "patgate"}
        self.h2.send_headers(number, [*fields.items(), ("content-type", "application/grpc")])
        self.h2.send_data(number, struct.pack(">BI", 0, len(message)) + message, end_stream=True)
        return self.h2.data_to_send()

    async def send(self, *data: bytes) -> None:
        """Send what is ready, and then ``data``."""
        async with asyncio.timeout(HANGS_SECONDS):
            await asyncio.get_running_loop().sock_sendall(self.sock, self.h2.data_to_send() + b"".join(data))


@contextmanager
def mute(here: Place) -> Iterator[Mute]:
    client = Mute(here.gateway.port)
    try:
        yield client
    finally:
        client.sock.close()


async def accepted(here: Place) -> served.EnvoyConnection:
    await until(lambda: len(here.listener.connections) == 1)
    (connection,) = here.listener.connections
    return connection


def defects_so_far() -> float:
    return sum(sum(each.values()) for each in defects.snapshot().counters.values())


async def test_a_connection_whose_only_call_was_never_complete_ends_like_an_idle_one() -> None:
    async with place(head_seconds=0.2, keepalive_seconds=0.2) as here:
        here.sweeping = False
        envoy = await here.envoy()
        number = envoy.begin(None)
        await until(lambda: not next(iter(here.listener.connections)).idle())
        here.sweeping = True
        await until(lambda: number in envoy.resets)
        await until(lambda: envoy.closed)


async def test_a_peer_that_does_not_read_its_answers_is_disconnected() -> None:
    """Also if a call has arrived behind the one whose answer was too much."""
    async with place(answer_seconds=1.0) as here:
        with mute(here) as client:
            await client.send()
            connection = await accepted(here)
            transport = fill(connection)
            transport.set_write_buffer_limits(high=transport.get_write_buffer_size() + 10)
            await client.send(client.begin(check()) + client.begin(check()))
            await until(lambda: not here.listener.connections)


def fill(connection: served.EnvoyConnection) -> asyncio.Transport:
    """Write more than the kernel takes, and less than what pauses the connection; its transport."""
    transport = connection.transport
    assert transport is not None
    transport.set_write_buffer_limits(high=64 * 1024 * 1024)
    transport.write(b"\0" * 8_000_000)
    return transport


@pytest.mark.parametrize("end", ["protocol", "goaway", "eof"])
async def test_a_connection_that_ends_with_unread_answers_is_reset_in_time(end: str) -> None:
    async with place(head_seconds=1.0) as here:
        here.listener.hold()
        with mute(here) as client:
            await client.send(client.begin(OPEN))
            connection = await accepted(here)
            await until(lambda: not connection.idle())
            fill(connection)
            if end == "protocol":
                await client.send(b"\0\0\x08\x06\0\0\0\0\x01" + b"x" * 8)  # a PING on a stream
            elif end == "goaway":
                client.h2.close_connection()
                await client.send()
            else:
                client.sock.shutdown(socket.SHUT_WR)
            await until(lambda: not here.listener.connections)
        here.listener.release()


async def test_a_goaway_right_behind_a_call_leaves_the_call_recorded_and_no_defect() -> None:
    before = defects_so_far()
    async with place() as here:
        with mute(here) as client:
            await client.send()
            await accepted(here)
            call = client.begin(check())
            client.h2.close_connection()
            await client.send(call, client.h2.data_to_send())
            await until(lambda: here.gateway.access and not here.listener.connections)
            assert here.gateway.access[0]["reason"] in ("no_credential", "client_left")
    assert defects_so_far() == before


async def test_a_goaway_while_calls_wait_for_a_reload_does_not_disturb_the_reload() -> None:
    async with place() as here:
        here.listener.hold()
        with mute(here) as client:
            await client.send(client.begin(OPEN))
            connection = await accepted(here)
            await until(lambda: not connection.idle())
            transport = fill(connection)
            client.h2.close_connection()
            await client.send()
            await until(lambda: transport.is_closing())
            other = await here.envoy()
            number = other.begin(OPEN)
            await until(lambda: len(here.listener.connections) == 2)
            here.listener.release()
            await until(lambda: number in other.ended)
            assert other.answer(number).code == 0


async def test_a_call_that_cannot_be_decided_fails_alone_and_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(message: bytes) -> object:
        if b"/open/broken" in message:
            raise RuntimeError("a defect")
        return read_call(message)

    monkeypatch.setattr(deciding, "read_call", broken)
    before = defects_so_far()
    async with place() as here:
        envoy = await here.envoy()
        bad, good = envoy.begin(check(path=b"/open/broken")), envoy.begin(OPEN)
        await until(lambda: good in envoy.ended)
        assert envoy.answer(good).code == 0
        await until(lambda: bad in envoy.ended or bad in envoy.resets)
        assert envoy.status.get(bad) != "0" and not envoy.closed
        await until(lambda: not here.gateway.listener.connections)
    assert defects_so_far() == before + 1


async def test_an_answer_that_cannot_be_written_fails_alone_and_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(response: bytes, removed: object) -> bytes:
        raise RuntimeError("a defect")

    before = defects_so_far()
    async with place() as here:
        envoy = await here.envoy()
        with monkeypatch.context() as patch:
            patch.setattr(deciding, "answer_of", broken)
            bad = envoy.begin(OPEN)
            await until(lambda: bad in envoy.ended or bad in envoy.resets or envoy.closed)
        assert envoy.status.get(bad) != "0" and not envoy.closed
        assert (await envoy.call(OPEN)).code == 0
    assert defects_so_far() == before + 1


async def test_of_a_peer_that_may_not_ask_no_message_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of 100 KB can take a tenth of a second to read."""
    reading: list[bytes] = []
    monkeypatch.setattr(deciding, "read_call", reading.append)
    async with place(trusted=["192.0.2.0/24"]) as here:
        found = await (await here.envoy()).call(check(**raw(here.login())))
        assert found.status == 403 and b"peer_untrusted" in found.body
    async with place(secret=b"s" * 32) as here:
        for metadata in ({}, {"x_patgate_secret": "x" * 32}):
            found = await (await here.envoy()).call(check(**raw(here.login())), **metadata)
            assert found.status == 403 and b"peer_secret" in found.body
    assert reading == []


async def test_a_call_that_waits_for_a_reload_is_read_by_the_new_settings() -> None:
    async with place(trusted=["192.0.2.0/24"]) as here, place() as after:
        envoy = await here.envoy()
        here.listener.hold()
        number = envoy.begin(OPEN)
        await until(lambda: here.listener.held_calls)
        here.listener.follow(after.listener)
        here.listener.release()
        await until(lambda: number in envoy.ended)
        assert envoy.answer(number).code == 0


async def test_calls_that_are_abandoned_while_they_wait_for_a_reload_are_forgotten() -> None:
    async with place() as here:
        here.listener.hold()
        envoy = await here.envoy()
        numbers = [envoy.begin(OPEN) for _ in range(20)]
        await until(lambda: len(here.listener.held_calls) == 20)
        for number in numbers:
            envoy.h2.reset_stream(number, ErrorCodes.CANCEL)
        envoy.flush()
        await until(lambda: not here.listener.held_calls)
        here.listener.release()
        assert (await envoy.call(OPEN)).code == 0


async def test_calls_that_arrive_together_leave_turns_to_other_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    decided: list[int] = []
    turns: list[int] = []

    def slow(message: bytes) -> object:
        decided.append(len(turns))
        return read_call(message)

    monkeypatch.setattr(deciding, "read_call", slow)
    async with place() as here:
        with mute(here) as client:
            await client.send()
            await accepted(here)
            calls = b"".join(client.begin(check(path=b"/open/%d" % n, raw=[(b"x-a", b"a" * 200)])) for n in range(90))
            running = True

            def turn() -> None:
                turns.append(1)
                if running:
                    asyncio.get_running_loop().call_soon(turn)

            turn()
            await client.send(calls)
            await until(lambda: len(decided) == 90)
            running = False
    most = max(decided.count(each) for each in set(decided))
    assert most <= 20, most


async def test_a_peer_that_abandons_calls_is_asked_to_leave_and_its_other_calls_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(served, "_MOST_RESETS", 20)
    async with place() as here:
        here.listener.hold()
        envoy = await here.envoy()
        honest = envoy.begin(OPEN)
        for _ in range(21):
            envoy.h2.reset_stream(envoy.begin(check()), ErrorCodes.CANCEL)
        envoy.flush()
        await until(lambda: envoy.goaway)
        assert not envoy.closed
        here.listener.release()
        await until(lambda: envoy.closed)
        assert envoy.answer(honest).code == 0


async def test_an_answer_goes_on_when_the_peer_opens_its_windows_by_a_setting() -> None:
    async with place() as here:
        envoy = await here.envoy()
        envoy.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        envoy.flush()
        number = envoy.begin(OPEN)
        await until(lambda: here.listener.connections and not next(iter(here.listener.connections)).idle())
        envoy.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 65_535})
        envoy.flush()
        await until(lambda: number in envoy.ended)
        assert envoy.answer(number).code == 0


async def test_more_calls_than_announced_are_no_reason_to_end_the_connection() -> None:
    """A new connection of Envoy has not seen the limit when it sends its first calls."""
    async with place() as here:
        here.listener.hold()
        with mute(here) as client:
            client.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 10_000
            client.h2.remote_settings.acknowledge()
            await client.send(*(client.begin(OPEN) for _ in range(1100)))
            connection = await accepted(here)
            await until(lambda: len(connection._streams) == 1100)
        here.listener.release()


async def test_a_call_that_fails_early_does_not_stay_open() -> None:
    async with place() as here:
        envoy = await here.envoy()
        number = envoy.begin(None, path=b"/other")
        await until(lambda: number in envoy.resets)
        assert (envoy.status[number], envoy.resets[number]) == ("12", ErrorCodes.NO_ERROR)


async def test_of_calls_that_have_ended_a_connection_remembers_few() -> None:
    async with place() as here:
        envoy = await here.envoy()
        (connection,) = here.listener.connections
        for _ in range(30):
            numbers = {envoy.begin(OPEN) for _ in range(50)}
            await until(lambda: envoy.ended >= numbers)  # noqa: B023 - it is awaited in its turn
        assert len(connection._h2._closed_streams) <= 1024
        assert len(connection._h2.streams) <= 100


ERRORS: dict[str, tuple[bytes | None, dict[str, Any]]] = {
    "not_a_call": (b"", {"path": b"/other"}),
    "message": (b"\xff", {}),
    "too_long": (b"", {"frame": struct.pack(">BI", 0, 2**31)}),
    "timeout": (None, {}),
}


@pytest.mark.parametrize("cause", ERRORS)
async def test_an_error_of_a_peer_is_counted_by_its_cause(cause: str) -> None:
    message, facts = ERRORS[cause]
    async with place(head_seconds=0.2) as here:
        envoy = await here.envoy()
        number = envoy.begin(message, **facts)
        await until(lambda: number in envoy.ended or number in envoy.resets)
        assert counted(here) == {(cause,): 1}


async def test_a_broken_protocol_is_counted() -> None:
    async with place() as here:
        with mute(here) as client:
            await client.send(b"\0\0\x08\x06\0\0\0\0\x01" + b"x" * 8)  # a PING on a stream
            await until(lambda: counted(here) == {("protocol",): 1})


def counted(here: Place) -> dict[Any, Any]:
    return dict(here.listener.errors.snapshot().counters["patgate_ext_authz_errors_total"])
