"""A reload within a worker: no request starts during the hold, and then only the new configuration counts."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network
from pathlib import Path

import pytest

from proxy.core.identity import PRESETS, IdentityHeaders, IdentityOutputs
from proxy.core.ipc.clock import boottime_ns
from proxy.core.ipc.shared_memory import SLOT_LEASE
from proxy.core.kinds import Kind
from proxy.core.model import Access
from proxy.core.routes import Route, RouteTable
from proxy.core.token_search import TokenSearch
from proxy.gateway.downstream.limits import DownstreamLimits
from proxy.gateway.downstream.listener import Listener
from proxy.gateway.phases.parse import HeadParser
from proxy.gateway.pipeline import ProxyPipeline
from proxy.settings.compile import route_table
from proxy.settings.model import Settings
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.ingress import ORIGINAL, Wire, ask_on
from tests.unit.gateway.ingress import entry as forward_auth
from tests.unit.gateway.kit import (
    IDENTITY,
    TOKENS,
    Backend,
    BackendConnection,
    Gateway,
    answering,
    default_routes,
    get,
    make_cache,
    make_grant,
    make_page,
    make_route,
    places_of,
    responder,
    response,
    serving,
    until,
)
from tests.unit.gateway.scripted import authority_at

WORDS = ("bearer", "basic", "x-api-key")
OPEN = get("/open/x")
DENIED = [make_route("/open/**", Access.DENIED), make_route("/v1/**", Access.DENIED, index=1)]
RUNTIME = {"connections", "others", "arriving", "held", "draining", "closing_websockets", "empty", "waiting"}
"""Attributes of a listener that are no settings: its connections and their state."""


def hold(gateway: Gateway) -> None:
    gateway.listener.hold()
    gateway.pipeline.hold()


def release(gateway: Gateway) -> None:
    gateway.pipeline.release()
    gateway.listener.release()


def follow(gateway: Gateway, routes: list[Route]) -> None:
    gateway.pipeline.follow(RouteTable(routes), responder(), gateway.identity)


def waiting(gateway: Gateway) -> list[bytes]:
    return [connection.buffer for connection in gateway.listener.connections if connection.buffer]


async def test_a_request_during_the_hold_waits_and_is_decided_by_the_new_configuration() -> None:
    async with serving(answering(response())) as (gateway, backend):
        client = await gateway.client()
        assert (await client.ask(OPEN)).status == 200
        hold(gateway)
        client.send(OPEN[:20])
        await until(lambda: waiting(gateway) == [OPEN[:20]])
        client.send(OPEN[20:])
        await until(lambda: waiting(gateway) == [OPEN])
        assert len(backend.heads) <= 1
        follow(gateway, DENIED)
        release(gateway)
        assert (await client.answer()).reason == "route_denied"


async def test_without_another_configuration_the_hold_only_delays() -> None:
    async with serving(answering(response()), half_close=True) as (gateway, _):
        early, late = await gateway.client(), None
        hold(gateway)
        late = await gateway.client()
        early.send(OPEN + OPEN)
        late.send(OPEN)
        late.writer.write_eof()
        await until(lambda: len(waiting(gateway)) == 2)
        release(gateway)
        assert [(await early.answer()).status, (await early.answer()).status] == [200, 200]
        assert (await late.answer()).status == 200, "a client that has sent all it will is answered too"


async def test_a_pipelined_request_waits_for_the_answer_before_it() -> None:
    go_on = asyncio.Event()

    async def slow(connection: BackendConnection) -> None:
        await connection.request()
        await go_on.wait()
        await connection.send(response(b"slow"))
        await answering(response(b"later"))(connection)

    async with serving(slow) as (gateway, _):
        client = await gateway.client()
        client.send(OPEN + OPEN)
        await until(lambda: gateway.active == 1)
        hold(gateway)
        go_on.set()
        first = await client.answer()
        assert (first.status, first.body) == (200, b"slow"), "a request that was decided continues"
        await until(lambda: waiting(gateway) == [OPEN])
        follow(gateway, DENIED)
        release(gateway)
        assert (await client.answer()).reason == "route_denied"


@pytest.mark.parametrize("held_at_the_answer", [True, False])
async def test_a_request_that_waits_for_the_authority_is_decided_by_the_new_routes(
    tmp_path: Path, held_at_the_answer: bool
) -> None:
    minted = TOKENS.mint(Kind.PAT)
    answer = asyncio.Event()
    bearer = f"Authorization: Bearer {minted.token}"
    async with (
        authority_at(tmp_path / "link.sock") as authority,
        serving(answering(response()), link_path=tmp_path / "link.sock", page=make_page()) as (gateway, _),
    ):
        authority.grants[minted.prefix] = make_grant(minted)

        async def late(message: dict[str, object]) -> dict[str, object] | None:
            await answer.wait()
            return authority.usual(message)

        authority.answers["resolve"] = late
        client = await gateway.client()
        client.send(get("/v1/things", bearer))
        await until(lambda: authority.asked["resolve"] == 1)
        hold(gateway)
        if held_at_the_answer:
            answer.set()
            await until(lambda: minted.prefix in gateway.cache.entries)
            follow(gateway, DENIED)
            release(gateway)
        else:
            follow(gateway, DENIED)
            release(gateway)
            answer.set()
        assert (await client.answer()).reason == "route_denied"


async def test_a_call_that_waits_for_the_authority_is_refused_if_its_ingress_is_trusted_no_longer(
    tmp_path: Path,
) -> None:
    minted = TOKENS.mint(Kind.PAT)
    go_on = asyncio.Event()
    async with (
        authority_at(tmp_path / "link.sock") as authority,
        forward_auth(link_path=tmp_path / "link.sock", page=make_page()) as gateway,
    ):
        authority.grants[minted.prefix] = make_grant(minted)

        async def late(message: dict[str, object]) -> dict[str, object] | None:
            await go_on.wait()
            return authority.usual(message)

        authority.answers["resolve"] = late
        client, pipeline = await gateway.client(), gateway.listener.pipeline
        asked = asyncio.create_task(ask_on(client, "/nginx", ORIGINAL, f"Authorization: Bearer {minted.token}"))
        await until(lambda: authority.asked["resolve"] == 1)
        gateway.listener.hold()
        pipeline.hold()
        pipeline.follow(pipeline.routes, responder(), gateway.identity)
        gateway.listener.trusted = ()
        gateway.listener.follow(gateway.listener)
        pipeline.release()
        gateway.listener.release()
        go_on.set()
        answer = await asked
        assert (answer.status, answer.reason) == (403, "peer_untrusted")


async def endless(connection: BackendConnection) -> None:
    """An event stream without an end."""
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await connection.send(b"5\r\ntick\n\r\n")
        await asyncio.sleep(0.01)


async def test_live_exchanges_are_judged_by_the_new_configuration() -> None:
    async with serving(endless) as (gateway, _):
        minted = gateway.admit()
        client = await gateway.client()
        client.send(get("/v1/things/1", f"Authorization: Bearer {minted.token}"))
        assert b"200 OK" in await client.reader.readuntil(b"\r\n\r\n")
        hold(gateway)
        follow(gateway, [make_route("/v1/{entity}/{id}", Access.TOKEN)])
        release(gateway)
        for _ in range(5):
            assert b"tick" in await client.reader.readuntil(b"tick\n\r\n")
        hold(gateway)
        gateway.cache.reset(gateway.cache.applied)
        follow(gateway, DENIED)
        release(gateway)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            while True:
                await client.reader.readuntil(b"tick\n\r\n")


async def test_a_stream_that_begins_after_a_reload_is_judged_by_it_too() -> None:
    """It was decided before the reload, and not watched yet, because its answer came afterwards."""
    go_on = asyncio.Event()

    async def late(connection: BackendConnection) -> None:
        await go_on.wait()
        await endless(connection)

    async with serving(late) as (gateway, _):
        minted = gateway.admit()
        client = await gateway.client()
        client.send(get("/v1/things/1", f"Authorization: Bearer {minted.token}"))
        await until(lambda: gateway.active == 1)
        hold(gateway)
        follow(gateway, DENIED)
        release(gateway)
        go_on.set()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            async with asyncio.timeout(HANGS_SECONDS):
                while True:
                    await client.reader.readuntil(b"tick\n\r\n")


async def test_a_lease_that_expired_during_the_hold_decides_no_request_that_waited(tmp_path: Path) -> None:
    minted = TOKENS.mint(Kind.PAT)
    bearer = f"Authorization: Bearer {minted.token}"
    path, page = tmp_path / "link.sock", make_page()
    async with (
        authority_at(path) as authority,
        serving(answering(response()), link_path=path, page=page) as (gateway, backend),
    ):
        authority.grants[minted.prefix] = make_grant(minted)
        answer = asyncio.Event()

        async def late(message: dict[str, object]) -> dict[str, object] | None:
            await answer.wait()
            return authority.usual(message)

        authority.answers["resolve"] = late
        client = await gateway.client()
        client.send(get("/v1/things/1", bearer))
        await until(lambda: authority.asked["resolve"] == 1)
        hold(gateway)
        answer.set()
        await until(lambda: minted.prefix in gateway.cache.entries)
        gateway.page[SLOT_LEASE] = boottime_ns()
        release(gateway)
        assert (await client.answer()).status == 503
        assert not backend.connections


async def test_changed_credential_schemes_or_header_names_empty_the_cache() -> None:
    async with serving(answering(response())) as (gateway, _):
        authenticator = gateway.authenticator
        bearer = places_of("bearer")
        assert not authenticator.follow(IDENTITY, places_of("x-api-key", "basic", "bearer"), default_routes())
        assert authenticator.follow(IDENTITY, bearer, default_routes())
        assert authenticator.follow(
            IdentityOutputs((IdentityHeaders(PRESETS["remote-user"]),)), bearer, default_routes()
        )


async def test_changed_places_of_a_route_empty_the_cache_and_a_changed_challenge_does_not() -> None:
    async with serving(answering(response())) as (gateway, _):
        authenticator, everywhere = gateway.authenticator, places_of("bearer", "basic", "x-api-key")
        offered = [make_route("/v1/**", Access.TOKEN, credentials=places_of(*WORDS, challenge=["basic"]))]
        assert not authenticator.follow(IDENTITY, everywhere, offered)
        own = [make_route("/v1/**", Access.TOKEN, credentials=places_of("bearer"))]
        assert authenticator.follow(IDENTITY, everywhere, own)
        assert not authenticator.follow(IDENTITY, everywhere, own)
        assert authenticator.follow(IDENTITY, everywhere, offered)


def test_a_smaller_cache_evicts_grants_above_its_capacity() -> None:
    cache = make_cache()
    for _ in range(10):
        cache.store(make_grant(TOKENS.mint(Kind.PAT)), IDENTITY)
    for entry in cache.entries.values():
        entry.used = False
    cache.resize(capacity=4, absent_capacity=10)
    assert len(cache) == 4


async def test_a_listener_takes_over_every_setting_and_keeps_its_connections() -> None:
    """A new setting of the listener that ``follow`` forgets fails this test."""
    async with serving(answering(response())) as (gateway, _):
        before, after = listener(gateway.pipeline, 1), listener(gateway.pipeline, 2)
        there = {name: getattr(before, name) for name in RUNTIME}
        # By ``dir``, because objects of the compiled class have no ``__dict__``.
        facts = {name for name in dir(after) if not name.startswith("_") and not callable(getattr(after, name))}
        before.follow(after)
        for name in RUNTIME:
            assert getattr(before, name) is there[name], name
        for name in facts - RUNTIME - {"open"}:
            assert getattr(before, name) == getattr(after, name), name
        assert {"limits", "scheme", "trusted", "parser"} <= facts


async def test_a_connection_that_opens_after_a_reload_follows_it_whenever_it_was_accepted() -> None:
    async with serving(answering(response())) as (gateway, _):
        before, after = listener(gateway.pipeline, 1), listener(gateway.pipeline, 2)
        arriving = before.connection("192.0.2.2")
        before.arriving += 1
        before.follow(after)
        arriving.connection_made(Wire("192.0.2.2"))
        assert arriving.limits is after.limits
        assert arriving.peer_trusted


def listener(pipeline: ProxyPipeline, number: int) -> Listener:
    """A listener of which every setting depends on the number."""
    return Listener(
        pipeline=pipeline,
        parser=HeadParser(
            search=TokenSearch(TOKENS),
            stripped=IDENTITY.stripped, presented=(b"x-api-key",), max_headers=8, max_request_line=256, max_body=None,
            pseudonym=b"x",
        ),
        trusted=[ip_network(f"192.0.2.{number}/32")],
        boot=b"%d" % number,
        limits=DownstreamLimits(
            max_head=number, max_request_line=number, max_body=number, handshake_ns=number, head_ns=number,
            body_idle_ns=number, keepalive_ns=number, answer_ns=number, tunnel_ns=number, stream_ns=number,
            client_rate=number, half_close=number == 2,
        ),
        tls=number == 2,
    )  # fmt: skip


def test_a_route_keeps_its_index_by_its_name_so_that_its_counts_continue() -> None:
    places: dict[str, int] = {}

    def indices(*paths: str) -> list[int]:
        routes = [{"path": path, "access": "denied"} for path in paths]
        return [route.index for route in route_table(Settings.model_validate({"routes": routes}), places).routes]

    assert indices("/a", "/b") == [0, 1]
    assert indices("/b", "/c", "/a") == [1, 2, 0]
    assert indices("/c", "/d") == [2, 3]


async def test_counts_and_log_lines_continue_over_a_change_of_routes() -> None:
    async with serving(answering(response())) as (gateway, backend):
        assert isinstance(backend, Backend)
        client = await gateway.client()
        assert (await client.ask(OPEN)).status == 200
        counted = gateway.recorder.snapshot(hits=0, misses=0, entries=0, lag=0).totals()
        more = [*RouteTable([make_route("/new/**", Access.PUBLIC, index=6)]).routes]
        gateway.recorder.follow(more, Settings().log, 1, Settings().audit)
        follow(gateway, more)
        assert (await client.ask(get("/new/x"))).status == 200
        now = gateway.recorder.snapshot(hits=0, misses=0, entries=0, lag=0).counters["patgate_requests_total"]
        before = counted.counters["patgate_requests_total"]
        assert {key: now[key] for key in before} == before
        assert now[("/new/**", "allowed", "allowed")] == 1
