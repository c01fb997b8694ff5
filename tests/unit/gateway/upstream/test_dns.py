"""DNS: names in ``servers`` are resolved periodically, apart from requests, and every address is used."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from proxy.gateway.upstream.dns import SystemResolver, TableResolver
from tests.support.process import HANGS_SECONDS, free_port
from tests.unit.gateway.kit import NEVER, Backend, BackendConnection, Client, answering, get, reset, response, until
from tests.unit.gateway.upstream.watched import Watched, backend_at, fields, logged, watched

ONE, TWO, THREE = "127.0.0.1", "127.0.0.2", "127.0.0.3"
OFTEN = 0.02


def named(port: int, name: str = "app.test") -> list[str]:
    return [f"http://{name}:{port}"]


async def asked(client: Client, count: int = 12) -> set[bytes]:
    return {(await client.ask(get("/open/a"))).body for _ in range(count)}


class Counting(TableResolver):
    """Counts the questions about each name."""

    def __init__(self, table: Mapping[str, Sequence[str]]) -> None:
        super().__init__(table)
        self.questions: Counter[str] = Counter()

    async def resolve(self, host: str) -> Sequence[str]:
        self.questions[host] += 1
        return await super().resolve(host)


def hosts(gateway: Watched) -> list[str]:
    return [server.host for server in gateway.servers]


async def test_every_address_of_a_name_gets_requests() -> None:
    port = free_port()
    async with (
        backend_at(answering(response(b"one")), ONE, port),
        backend_at(answering(response(b"two")), TWO, port),
        watched({"app.test": [ONE, TWO]}, servers=named(port)) as gateway,
    ):
        assert await asked(await gateway.client()) == {b"one", b"two"}
        assert gateway.gauges("addresses") == {("app", f"http://app.test:{port}"): 2}


async def test_an_address_that_refuses_fails_no_request() -> None:
    port = free_port()
    async with (
        backend_at(answering(response(b"one")), ONE, port),
        watched({"app.test": [TWO, ONE, THREE]}, servers=named(port)) as gateway,
    ):
        client = await gateway.client()
        assert await asked(client) == {b"one"}
        assert (await client.ask(get("/open/a", method="DELETE"))).status == 200
        # One usable address is enough for the configured server to be up.
        assert gateway.gauges("up") == {("app", f"http://app.test:{port}"): 1}


async def test_changed_addresses_move_requests_and_close_idle_connections(caplog: pytest.LogCaptureFixture) -> None:
    table = {"app.test": [ONE]}
    port = free_port()
    with caplog.at_level(logging.INFO, logger="patgate"):
        async with (
            backend_at(answering(response(b"one")), ONE, port) as old,
            backend_at(answering(response(b"two")), TWO, port) as new,
            watched(table, servers=named(port), resolve_interval=OFTEN) as gateway,
        ):
            client = await gateway.client()
            assert await asked(client) == {b"one"}
            before = gateway.servers[0]
            table["app.test"] = [TWO]
            await until(lambda: hosts(gateway) == [TWO])
            assert await asked(client) == {b"two"}
            assert not before.idle
            await until(lambda: all(each.writer.is_closing() for each in old.connections))
            assert len(new.connections) == 1
    assert logged(caplog) == ["upstream name has other addresses"]
    assert fields(caplog, "upstream name has other addresses")["addresses"] == [TWO]


async def test_an_exchange_with_a_removed_address_completes_and_then_its_connection_closes() -> None:
    table = {"app.test": [ONE]}
    go_on = asyncio.Event()

    async def slow(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        await go_on.wait()
        await connection.send(b"def")
        assert await connection.gone()

    port = free_port()
    async with (
        backend_at(slow, ONE, port) as old,
        backend_at(answering(response(b"two")), TWO, port),
        watched(table, servers=named(port), resolve_interval=OFTEN) as gateway,
    ):
        client = await gateway.client()
        client.send(get("/open/a"))
        await until(lambda: old.connections and old.connections[0].head)
        server = gateway.servers[0]
        table["app.test"] = [TWO]
        await until(lambda: hosts(gateway) == [TWO])
        go_on.set()
        assert (await client.answer()).body == b"abcdef"
        await until(lambda: old.connections[0].writer.is_closing())
        assert not server.idle and not server.active
        assert await asked(client) == {b"two"}


async def test_an_address_that_stays_keeps_its_connections() -> None:
    table = {"app.test": [ONE]}
    port = free_port()
    async with (
        backend_at(answering(response(b"one")), ONE, port) as one,
        backend_at(answering(response(b"two")), TWO, port),
        watched(table, servers=named(port), resolve_interval=OFTEN) as gateway,
    ):
        client = await gateway.client()
        await asked(client)
        before = gateway.servers[0]
        # A name server that rotates its answer has changed nothing.
        for answer in ([TWO, ONE], [ONE, TWO]):
            table["app.test"] = answer
            await until(lambda: len(gateway.servers) == 2)
            await asked(client)
        assert before in gateway.servers
        assert len(one.connections) == 1


async def test_a_failing_resolver_keeps_the_last_addresses_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = {"app.test": [ONE]}
    resolver = Counting(table)
    port = free_port()
    with caplog.at_level(logging.INFO, logger="patgate"):
        async with (
            backend_at(answering(response(b"one")), ONE, port),
            watched(resolver, servers=named(port), resolve_interval=OFTEN) as gateway,
        ):
            table["app.test"] = []
            before = resolver.questions["app.test"]
            # The fourth question follows the answer to the third.
            await until(lambda: resolver.questions["app.test"] >= before + 4)
            assert await asked(await gateway.client()) == {b"one"}
            table["app.test"] = [ONE]
            await until(lambda: "upstream name is resolved again" in logged(caplog))
    assert logged(caplog) == ["upstream name is not resolved", "upstream name is resolved again"]
    said = fields(caplog, "upstream name is not resolved")
    assert (said["host"], said["kept"], said["why"]) == ("app.test", 1, "Name or service not known")


async def test_a_name_without_an_address_is_a_502_until_it_is_resolved() -> None:
    table: dict[str, Sequence[str]] = {}
    port = free_port()
    async with (
        backend_at(answering(response(b"one")), ONE, port),
        watched(table, servers=named(port), resolve_interval=OFTEN) as gateway,
    ):
        client = await gateway.client()
        answer = await client.ask(get("/open/a"))
        assert (answer.status, answer.reason) == (502, "upstream_refused")
        assert gateway.gauges("up") == gateway.gauges("addresses") == {("app", f"http://app.test:{port}"): 0}
        table["app.test"] = [ONE]
        await until(lambda: gateway.servers)
        assert await asked(client) == {b"one"}


async def test_a_resolver_that_hangs_delays_neither_requests_nor_the_shutdown() -> None:
    class Hanging:
        def __init__(self) -> None:
            self.questions = 0

        async def resolve(self, host: str) -> Sequence[str]:
            self.questions += 1
            if self.questions > 1:
                await asyncio.get_running_loop().create_future()
            return [ONE]

    resolver = Hanging()
    port = free_port()
    async with (
        backend_at(answering(response(b"one")), ONE, port),
        watched(resolver, servers=named(port), resolve_interval=OFTEN) as gateway,
    ):
        await until(lambda: resolver.questions == 2)
        assert await asked(await gateway.client()) == {b"one"}
        sweeps: list[float] = []
        gateway.on_sweep = lambda: sweeps.append(time.monotonic())
        await until(lambda: len(sweeps) > 1 and sweeps[-1] - sweeps[0] > 5 * OFTEN)
        assert resolver.questions == 2


async def test_one_lookup_serves_every_use_of_a_name() -> None:
    resolver = Counting({"app.test": [ONE]})
    servers = ["http://app.test:81", "http://127.0.0.7:81", "http://app.test:82", "http://[::1]:81", "unix:/run/a.sock"]
    async with watched(resolver, servers=servers) as gateway:
        assert resolver.questions == {"app.test": 1}
        assert hosts(gateway) == [ONE, "127.0.0.7", ONE, "::1", ""]
        assert [server.name for server in gateway.servers] == servers


async def test_the_addresses_of_one_name_are_bounded_and_used_once_each() -> None:
    many = [f"127.0.{n // 250}.{n % 250 + 1}" for n in range(5000)]
    async with watched({"app.test": [ONE, ONE, *many]}, servers=named(81)) as gateway:
        assert len(gateway.servers) == len(set(hosts(gateway))) == 64


async def test_a_reload_keeps_known_addresses_and_resolves_new_names_before_their_first_request() -> None:
    """As in a reload: prepared pools have their addresses before their first request."""

    class Slow(Counting):
        async def resolve(self, host: str) -> Sequence[str]:
            sweeps = len(seen)
            await until(lambda: len(seen) >= sweeps + 3 or not slow)
            return await super().resolve(host)

    seen: list[float] = []
    slow = False
    resolver = Slow({"app.test": [ONE], "new.test": [TWO]})
    async with watched(resolver, servers=named(81), resolve_interval=OFTEN) as gateway:
        slow = True
        gateway.on_sweep = lambda: seen.append(time.monotonic())
        settings = gateway.app.settings.model_copy(update={"max_idle": 3})
        other = type(settings).model_validate(
            {"servers": ["http://new.test:81", "http://app.test:82"], "resolve_interval": OFTEN}
        )
        prepared = gateway.pipeline.upstreams.prepare({"app": settings, "new": other})
        changed, added = prepared["app"], prepared["new"]
        assert changed is not gateway.app
        await gateway.watch.prepare([changed, added], NEVER)
        assert [server.host for server in changed.servers] == [ONE]
        assert [server.host for server in added.servers] == [TWO, ONE]
        # Names of discarded pools are forgotten: only the name that is still in use is looked up.
        slow = False
        await until(lambda: len(seen) >= 3)
        before = resolver.questions.copy()
        await until(lambda: resolver.questions["app.test"] >= before["app.test"] + 5)
        assert resolver.questions["new.test"] <= before["new.test"] + 1


async def test_a_retry_goes_to_an_address_that_is_still_current() -> None:
    table = {"app.test": [ONE]}
    asked_again = asyncio.Event()

    async def dying(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(response(b"old"))
        await connection.request()
        asked_again.set()
        await until(lambda: hosts(gateway) == [TWO])
        reset(connection.writer)

    port = free_port()
    async with (
        backend_at(dying, ONE, port) as old,
        backend_at(answering(response(b"new")), TWO, port),
        watched(table, servers=named(port), resolve_interval=OFTEN) as gateway,
    ):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).body == b"old"
        client.send(get("/open/a"))
        await asked_again.wait()
        table["app.test"] = [TWO]
        assert (await client.answer()).body == b"new"
        assert len(old.connections) == 1


async def test_the_system_resolver_resolves_localhost_and_fails_for_invalid_names() -> None:
    resolver = SystemResolver()
    assert set(await resolver.resolve("localhost")) & {"127.0.0.1", "::1"}
    # A label of more than 63 bytes is invalid (RFC 1035 section 2.3.4), and is not looked up.
    with pytest.raises(OSError):
        await resolver.resolve("a" * 70 + ".invalid")


async def test_system_lookups_run_in_threads_that_the_shutdown_does_not_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Getaddrinfo may take half a minute; the shutdown of a worker may not."""
    answered = False
    asked_for, release = threading.Event(), threading.Event()

    def slow(host: str, *rest: object, **more: object) -> list[object]:
        nonlocal answered
        del host, rest, more
        asked_for.set()
        release.wait(HANGS_SECONDS)
        answered = True
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        question = asyncio.create_task(SystemResolver().resolve("slow.test"), name="question")
        await until(asked_for.is_set)
        question.cancel()
        with pytest.raises(asyncio.CancelledError):
            await question
        assert not answered
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == "resolve")
    finally:
        release.set()


async def test_localhost_reaches_a_backend_on_either_address_family() -> None:
    one = Backend(answering(response(b"here")))
    await one.start()
    try:
        async with watched(SystemResolver(), servers=[f"http://localhost:{one.port}"]) as gateway:
            assert await asked(await gateway.client()) == {b"here"}
    finally:
        await one.close()
