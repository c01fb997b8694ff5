"""Calls of Envoy on a real socket: answers, limits, deadlines, abandoned calls, reload and drain."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from proxy.core.ipc.clock import boottime_ns
from proxy.core.ipc.shared_memory import SLOT_LEASE
from proxy.gateway.described_request import DESCRIBING_FIELDS
from proxy.gateway.downstream.listener import Listener
from proxy.gateway.ext_authz import connection as served
from proxy.gateway.ext_authz.errors import ErrorCounters
from proxy.gateway.ext_authz.listener import EnvoyListener
from proxy.gateway.forward_auth import ForwardAuthPipeline, PeerSecret
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.ext_authz.calls import check
from tests.unit.gateway.ext_authz.envoy import Envoy
from tests.unit.gateway.ingress import entry
from tests.unit.gateway.kit import IDENTITY, NEVER, Entrance, Gateway, until

PLACES = frozenset((b"authorization", b"x-api-key"))


class Place:
    """A gateway whose acceptor serves Envoy."""

    def __init__(self, gateway: Gateway, listener: EnvoyListener) -> None:
        self.gateway, self.listener = gateway, listener
        self.clients: list[Envoy] = []
        self.sweeping = True
        """Whether deadlines are checked; a busy machine misses none otherwise."""

    async def envoy(self) -> Envoy:
        client = Envoy(*await asyncio.open_connection("127.0.0.1", self.gateway.port))
        self.clients.append(client)
        await until(lambda: client.settings)
        return client

    def login(self, **facts: Any) -> tuple[bytes, bytes]:
        return b"authorization", b"Bearer " + self.gateway.admit(**facts).token.encode()


@asynccontextmanager
async def place(*, secret: bytes = b"", **facts: Any) -> AsyncIterator[Place]:
    """A place; ``secret`` is what each call must contain."""
    made: list[EnvoyListener] = []
    secret_name = b"x-patgate-secret" if secret else b""
    if secret:
        facts["describing"] = (*DESCRIBING_FIELDS, secret_name)

    def outer(inner: Listener) -> EnvoyListener:
        made.append(
            EnvoyListener(
                inner=inner, stripped=IDENTITY.stripped, places=PLACES, secret_name=secret_name, errors=ErrorCounters()
            )
        )
        return made[0]

    async with entry(entrance=Entrance(seen_by_acceptor=outer), **facts) as gateway:
        here = Place(gateway, made[0])
        pipeline = gateway.listener.pipeline
        assert isinstance(pipeline, ForwardAuthPipeline)
        pipeline.limit(8192, NEVER, PeerSecret(secret_name, [hashlib.sha256(secret).digest()]) if secret else None)

        # ``EnvoyListener`` sweeps the gateway's listener, too.
        gateway.stop_sweeping()

        async def sweep() -> None:
            while True:
                await asyncio.sleep(0.01)
                if here.sweeping:
                    made[0].sweep(boottime_ns())
                    gateway.recorder.flush()

        sweeper = asyncio.create_task(sweep(), name="outer sweep")
        try:
            yield here
        finally:
            sweeper.cancel()
            await asyncio.wait([sweeper])
            for client in here.clients:
                await client.close()
            await until(lambda: not made[0].connections)


def raw(*lines: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"raw": lines}


async def test_an_allowed_call_gets_every_identity_header_and_what_to_remove() -> None:
    async with place() as here:
        envoy = await here.envoy()
        spoofed = ((b"x-auth-user", b"root"), (b"x_auth.role", b"root"), (b"accept", b"*"))
        found = await envoy.call(check(**raw(here.login(user="usr7"), *spoofed)))
        assert (found.code, found.names["X-Auth-User"], found.names["X-Auth-Org"]) == (0, "usr7", "")
        assert found.removed == ["authorization", "x_auth.role"]
        assert {action for _, _, action in found.headers} == {2}


@pytest.mark.parametrize("own", [b"the-applications", b""])
async def test_a_header_with_a_token_in_one_of_its_lines_is_removed_whole(own: bytes) -> None:
    """Envoy removes headers by name. On a public route the token decides nothing, and is still no one's business."""
    async with place() as here:
        token = here.gateway.admit().token.encode()
        for lines in ((own, token), (token, own)):
            message = check(path=b"/open/x", **raw(*((b"x-api-key", line) for line in lines)))
            found = await (await here.envoy()).call(message)
            assert (found.code, found.removed) == (0, ["x-api-key"])


async def test_two_destinations_that_envoy_has_joined_are_two_destinations() -> None:
    """A backend may take either line; a path with a comma looks the same as two lines."""
    async with place() as here:
        envoy = await here.envoy()
        joined = (here.login(), (b"destination", b"/v1/things/1,/shut/x"))
        found = await envoy.call(check(method=b"COPY", path=b"/open/x", joined=joined))
        assert (found.status, found.code) == (400, 7) and b"second_target_invalid" in found.body, found.body


async def test_a_credential_of_the_application_stays_and_patgates_does_not() -> None:
    async with place() as here:
        envoy = await here.envoy()
        token = here.gateway.admit().token.encode()
        both = ((b"authorization", b"Digest username=u"), (b"x-api-key", token))
        assert (await envoy.call(check(**raw(*both)))).removed == ["x-api-key"]
        # A route with a login of its own, where patgate takes no credential.
        own = await envoy.call(check(path=b"/ui/x", **raw((b"authorization", b"Basic dTpw"))))
        assert (own.code, own.removed) == (0, [])


@pytest.mark.parametrize(
    ("message", "status", "reason"),
    [
        (check(), 401, "no_credential"),
        (check(raw=[(b"authorization", b"Bearer nonsense")]), 401, "invalid_token"),
        (check(raw=[(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")]), 400, "credential_ambiguous"),
        (check(joined=[(b"authorization", b"Bearer a,Bearer b")]), 400, "credential_ambiguous"),
        (check(path=b"/shut/x"), 403, "route_denied"),
        (check(path=b"/nowhere"), 403, "no_route"),
        (check(path=b"/v1/%2e%2e/x"), 400, "target_not_canonical"),
        (check(path=b"*", method=b"OPTIONS"), 400, "forwarded_invalid"),
        (check(path=b"http://app.example/v1/x"), 400, "forwarded_invalid"),
        (check(host=b""), 400, "host_invalid"),
        (check(host=b"a,b"), 400, "host_invalid"),
        (check(raw=[(b"x-original-url", b"http://app.example/open/x")]), 400, "forwarded_invalid"),
        (check(raw=[(b":path", b"/open/x")]), 400, "forwarded_invalid"),
        (b"", 400, "forwarded_invalid"),
        (check(path=b"/" + b"a" * 9000), 414, "target_too_long"),
        (check(raw=[(b"x-a", b"a" * 40_000)]), 431, "head_too_large"),
        (check(raw=[(b"x-a", b"1")] * 101), 431, "head_too_large"),
    ],
)
async def test_a_refusal_has_the_reason_that_the_other_entries_give(message: bytes, status: int, reason: str) -> None:
    async with place() as here:
        found = await (await here.envoy()).call(message)
        assert (found.code, found.status) == (7, status)
        assert f'"reason": "{reason}"'.encode() in found.body, found.body
        assert found.removed == []


async def test_a_peer_that_is_not_trusted_gets_no_verdict_and_one_without_the_secret_neither() -> None:
    async with place(trusted=["192.0.2.0/24"]) as here:
        found = await (await here.envoy()).call(check(**raw(here.login())))
        assert found.status == 403 and b"peer_untrusted" in found.body


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ({"entity": "things", "operation": "read"}, None),
        ({"team": "other"}, None),
        ({"entity": "things", "operation": "update"}, "role_denies"),
        ({"entity": "things"}, "requirement_invalid"),
        ({"entity": "things", "operation": ""}, "requirement_invalid"),
    ],
)
async def test_a_requirement_of_envoys_route_decides(extensions: dict[str, str], reason: str | None) -> None:
    async with place() as here:
        own = [(name.encode(), value.encode()) for name, value in extensions.items()]
        login = here.login(permissions=("things:read",))
        found = await (await here.envoy()).call(check(extensions=own, **raw(login)))
        if reason is None:
            assert found.code == 0
        else:
            assert f'"reason": "{reason}"'.encode() in found.body, found.body


async def test_without_a_source_the_client_in_the_log_is_envoy_and_nobody_whom_the_client_names() -> None:
    """Envoy at a unix socket names none."""
    async with place() as here:
        await (await here.envoy()).call(check(**raw((b"x-forwarded-for", b"203.0.113.1"))))
        await until(lambda: here.gateway.access)
        seen = here.gateway.access[0]
        assert seen.get("client", seen["peer"]) == "127.0.0.1", seen


async def test_the_client_in_the_log_is_the_source_of_the_call() -> None:
    async with place() as here:
        await (await here.envoy()).call(check(source=b"192.0.2.7", **raw((b"x-forwarded-for", b"203.0.113.1"))))
        await until(lambda: here.gateway.access)
        assert here.gateway.access[0]["client"] == "192.0.2.7", here.gateway.access


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ({"path": b"/envoy.service.auth.v3.Authorization/Other"}, "12"),
        ({"path": b"/"}, "12"),
        ({"content_type": "application/json"}, None),
        ({"content_type": "application/grpc+json"}, None),
        ({"frame": struct.pack(">BI", 1, 3)}, "12"),
        ({"frame": struct.pack(">BI", 0, 4)}, "3"),
        ({"frame": struct.pack(">BI", 0, 2)}, "3"),
        ({"frame": struct.pack(">BI", 0, 2**31)}, "8"),
        ({"frame": b""}, "3"),
        ({"frame": struct.pack(">BI", 0, 3)}, "3"),
    ],
)
async def test_a_stream_that_is_no_call_fails_alone_and_the_connection_stays(facts: Any, status: str | None) -> None:
    async with place() as here:
        envoy = await here.envoy()
        assert await envoy.failure(envoy.begin(b"\x0a\x05a", **facts)) == status
        assert (await envoy.call(check(path=b"/open/x"))).code == 0
        assert not envoy.closed


async def test_many_calls_at_a_time_are_answered_each_for_itself() -> None:
    async with place() as here:
        envoy = await here.envoy()
        lines = raw(here.login())
        numbers = {
            envoy.begin(check(path=b"/open/x" if n % 2 else b"/v1/things/%d" % n, **lines)): n for n in range(90)
        }
        await until(lambda: envoy.ended == {*numbers})
        for number, n in numbers.items():
            assert envoy.answer(number).names["X-Auth-User"] == ("" if n % 2 else "usr1")
        assert envoy.settings[SettingCodes.MAX_CONCURRENT_STREAMS] == served.MOST_CALLS


async def test_an_answer_waits_for_the_window_of_the_peer() -> None:
    async with place() as here:
        envoy = await here.envoy()
        envoy.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 10})
        envoy.flush()
        envoy.h2.ping(b"12345678")
        assert (await envoy.call(check(**raw(here.login())))).names["X-Auth-User"] == "usr1"


async def test_incomplete_messages_end_at_their_deadline_and_give_the_window_back() -> None:
    async with place(head_seconds=0.2) as here:
        envoy = await here.envoy()
        before = envoy.h2.outbound_flow_control_window
        for _ in range(20):
            number = envoy.begin(None)
            envoy.h2.send_data(number, struct.pack(">BI", 0, 40_000) + b"x" * 10_000)
            envoy.flush()
        await until(lambda: len(envoy.resets) == 20)
        await until(lambda: envoy.h2.outbound_flow_control_window == before)


async def test_a_call_that_waits_for_the_authority_ends_when_envoy_abandons_it() -> None:
    async with place() as here:
        here.listener.hold()
        envoy = await here.envoy()
        number = envoy.begin(check(path=b"/open/x"))
        await until(lambda: here.listener.held_calls)
        envoy.h2.reset_stream(number, ErrorCodes.CANCEL)
        envoy.flush()
        await until(lambda: not here.listener.held_calls)
        here.listener.release()
        assert (await envoy.call(check(path=b"/open/x"))).code == 0


async def test_a_peer_that_abandons_every_call_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_MOST_RESETS", 20)
    async with place() as here:
        here.listener.hold()
        envoy = await here.envoy()
        for _ in range(30):
            envoy.h2.reset_stream(envoy.begin(check()), ErrorCodes.CANCEL)
        envoy.flush()
        await until(lambda: envoy.closed)


async def test_calls_that_arrive_during_a_reload_wait_for_it() -> None:
    async with place() as here:
        envoy = await here.envoy()
        here.listener.hold()
        number = envoy.begin(check(path=b"/open/x"))
        await until(lambda: here.listener.held_calls)
        assert number not in envoy.ended
        here.listener.release()
        await until(lambda: number in envoy.ended)
        assert envoy.answer(number).code == 0


async def test_a_reload_that_allows_longer_messages_asks_for_new_connections() -> None:
    async with place() as here, place(max_head=100_000) as after:
        before = await here.envoy()
        assert (await before.call(check(path=b"/open/x"))).code == 0
        here.listener.follow(after.listener)
        await until(lambda: before.closed)
        assert {*before.goaway} == {0}
        found = await (await here.envoy()).call(check(path=b"/open/x", raw=[(b"x-a", b"a" * 90_000)]))
        assert found.code == 0


async def test_a_drain_answers_calls_that_have_begun_announces_the_end_and_closes() -> None:
    async with place() as here:
        idle, busy = await here.envoy(), await here.envoy()
        here.listener.hold()
        number = busy.begin(check(path=b"/open/x"))
        await until(lambda: here.listener.held_calls)
        here.listener.leave()
        await until(lambda: idle.goaway and busy.goaway)
        here.listener.drain()
        await until(lambda: idle.closed)
        assert not busy.closed and not here.listener.empty.is_set()
        here.listener.release()
        await until(lambda: busy.closed)
        assert busy.answer(number).code == 0
        assert {*idle.goaway, *busy.goaway} == {0}
        await asyncio.wait_for(here.listener.empty.wait(), HANGS_SECONDS)


async def test_a_connection_without_calls_is_closed_with_a_goaway() -> None:
    async with place(keepalive_seconds=0.2) as here:
        here.sweeping = False
        envoy = await here.envoy()
        await envoy.call(check(path=b"/open/x"))
        here.sweeping = True
        await until(lambda: envoy.closed)
        assert envoy.goaway == [0]


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n"]
)
async def test_a_peer_that_speaks_another_protocol_is_disconnected(data: bytes) -> None:
    async with place(head_seconds=0.2) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.gateway.port)
        writer.write(data)
        async with asyncio.timeout(HANGS_SECONDS):
            while await reader.read(65_536):
                pass
        writer.close()


async def test_without_a_lease_of_the_authority_no_call_is_allowed() -> None:
    async with place() as here:
        here.gateway.page[SLOT_LEASE] = 0
        found = await (await here.envoy()).call(check(**raw(here.login())))
        assert (found.status, found.names["Retry-After"]) == (503, "1")


async def test_open_connections_are_counted_and_calls_are_not() -> None:
    async with place() as here:
        envoy = await here.envoy()
        here.listener.hold()
        envoy.begin(check(path=b"/open/x"))
        await until(lambda: here.listener.held_calls)
        assert here.gateway.recorder.connections == 1
        await envoy.close()
        await until(lambda: here.gateway.recorder.connections == 0)
        here.listener.release()
