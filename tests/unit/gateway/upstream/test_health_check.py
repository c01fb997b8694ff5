"""Active health checks: which servers get requests while some are ill, and what a check sends."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest

from proxy.gateway.upstream.health_check import HealthChecks
from proxy.observe.logs import get_logger
from proxy.settings.sections.upstreams import Upstream as UpstreamSettings
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.kit import (
    HOST,
    NEVER,
    Backend,
    BackendConnection,
    Gateway,
    Handler,
    answering,
    field_lines,
    get,
    response,
    task_runs,
    until,
)
from tests.unit.gateway.ports import full_backlog
from tests.unit.gateway.upstream.test_pool import backend, port_of, refusing
from tests.unit.gateway.upstream.watched import Watched, fields, logged, watched

OFTEN = {"path": "/up", "interval": 0.02, "timeout": NEVER}
CHECK = b"GET /up "


class Condition:
    """A backend that answers requests with its name, and checks with a response that the test sets."""

    def __init__(self, name: bytes, check: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        self.name = name
        self.check = check
        self.heads: list[bytes] = []
        self.requests = 0

    async def handle(self, connection: BackendConnection) -> None:
        while True:
            head = await connection.request()
            if head.startswith(CHECK):
                self.heads.append(head)
                await connection.send(self.check)
                return
            self.requests += 1
            await connection.send(response(self.name))


ILL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
WELL = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def urls(*backends: Backend) -> list[str]:
    return [f"http://{HOST}:{each.port}" for each in backends]


async def answers(gateway: Watched, count: int = 8) -> set[bytes]:
    client = await gateway.client()
    return {(await client.ask(get("/open/a"))).body for _ in range(count)}


async def test_an_ill_server_gets_no_requests_until_it_is_healthy_again(caplog: pytest.LogCaptureFixture) -> None:
    one, two = Condition(b"one"), Condition(b"two")
    with caplog.at_level(logging.INFO, logger="patgate"):
        async with (
            backend(one.handle) as first,
            backend(two.handle) as second,
            watched(servers=urls(first, second), health=OFTEN) as gateway,
        ):
            assert await answers(gateway) == {b"one", b"two"}
            one.check = ILL
            await until(lambda: gateway.healthy == [False, True])
            assert await answers(gateway) == {b"two"}
            assert not gateway.servers[0].idle
            one.check = WELL
            await until(lambda: gateway.healthy == [True, True])
            assert await answers(gateway) == {b"one", b"two"}
    assert logged(caplog) == ["upstream server is unhealthy", "upstream server is healthy again"]
    said = fields(caplog, "upstream server is unhealthy")
    assert (said["upstream"], said["server"], said["why"], said["usable"]) == ("app", urls(first)[0], "answered 503", 1)


async def test_a_servers_state_changes_after_fall_failures_or_rise_successes_in_a_row() -> None:
    one = Condition(b"one")
    health = OFTEN | {"rise": 3, "fall": 4}
    async with backend(one.handle) as first, watched(servers=urls(first), health=health) as gateway:
        await until(lambda: len(one.heads) >= 2)
        gateway.watching = False
        await until(lambda: not task_runs("health check"))

        async def check(answer: bytes) -> bool:
            one.check = answer
            gateway.watch.sweep(float("inf"), gateway.pipeline.upstreams.pools)
            assert task_runs("health check")
            await until(lambda: not task_runs("health check"))
            return gateway.servers[0].healthy

        assert [await check(ILL) for _ in range(3)] == [True] * 3
        assert await check(WELL)
        assert [await check(ILL) for _ in range(4)] == [True, True, True, False]
        assert [await check(WELL) for _ in range(2)] == [False, False]
        assert not await check(ILL)
        assert [await check(WELL) for _ in range(3)] == [False, False, True]
        counts = gateway.watch.snapshot().counters["patgate_upstream_checks_total"]
        assert counts[("app", urls(first)[0], "failed")] == 8
        assert counts[("app", urls(first)[0], "passed")] >= 8


async def test_with_every_server_ill_requests_are_refused_at_once_and_none_is_sent() -> None:
    one, two = Condition(b"one", ILL), Condition(b"two", ILL)
    async with (
        backend(one.handle) as first,
        backend(two.handle) as second,
        watched(servers=urls(first, second), health=OFTEN) as gateway,
    ):
        await until(lambda: not any(gateway.healthy))
        client = await gateway.client()
        for _ in range(3):
            answer = await client.ask(get("/open/a"))
            assert (answer.status, answer.reason) == (503, "upstream_unhealthy")
            assert answer.all(b"retry-after") == [b"1"]
        upload = await gateway.client()
        upload.send(b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 10\r\n\r\nhalf")
        assert (await upload.answer()).status == 503
        assert one.requests == two.requests == gateway.active == 0
        assert set(gateway.gauges("up").values()) == {0}
        two.check = WELL
        await until(lambda: any(gateway.healthy))
        assert await answers(gateway) == {b"two"}
        assert gateway.gauges("up") == {("app", urls(first)[0]): 0, ("app", urls(second)[0]): 1}


async def test_a_check_is_one_plain_request_with_the_servers_host_and_no_data_of_any_caller() -> None:
    one = Condition(b"one")
    async with backend(one.handle) as first, watched(servers=urls(first), health=OFTEN) as gateway:
        minted = gateway.admit()
        client = await gateway.client()
        bearer = f"Authorization: Bearer {minted.token}"
        for _ in range(5):
            assert (await client.ask(get("/v1/things", bearer, "Cookie: a=b"))).status == 200
            await asyncio.sleep(0.02)
        await until(lambda: len(one.heads) >= 3)
        wanted = (
            f"GET /up HTTP/1.1\r\nHost: {HOST}:{first.port}\r\n"
            "User-Agent: patgate-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        ).encode()
        assert set(one.heads) == {wanted}
        # A separate connection each time: none of them carried a request.
        mixed = [each for each in first.connections if CHECK in each.received and b"/v1/things" in each.received]
        assert not mixed


async def test_the_host_of_a_check_is_configurable() -> None:
    one = Condition(b"one")
    health = OFTEN | {"host": "app.internal:8443"}
    async with backend(one.handle) as first, watched(servers=urls(first), health=health):
        await until(lambda: one.heads)
        assert field_lines(one.heads[0], "host") == [b"app.internal:8443"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "answered 404"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 Oh\r\n\r\n", "answered 500"),
        (b"HTTP/1.1 200 OK\r\nbroken line\r\n\r\n", None),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.0 204 No Content\r\n\r\n", None),
        (b"nonsense\r\n\r\n", "no valid answer"),
        (b"HTTP/2 200\r\n\r\n", "no valid answer"),
        (b"HTTP/1.1 200 OK\r\nX: cut o", "no valid answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "no valid answer"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, "no valid answer"),
        (b"", "no valid answer"),
    ],
    ids=lambda value: repr(value)[:50],
)
async def test_a_check_passes_with_an_http_response_of_an_expected_status(
    answer: bytes, why: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    one = Condition(b"one", answer)
    async with backend(one.handle) as first, watched(servers=urls(first), health=OFTEN | {"fall": 1}) as gateway:
        if why is None:
            await until(lambda: len(one.heads) >= 3)
            assert gateway.healthy == [True]
        else:
            await until(lambda: gateway.healthy == [False])
            assert fields(caplog, "upstream server is unhealthy")["why"] == why


async def test_expected_statuses_are_configurable() -> None:
    one, two = Condition(b"one", b"HTTP/1.1 401 No\r\n\r\n"), Condition(b"two", b"HTTP/1.1 200 OK\r\n\r\n")
    async with (
        backend(one.handle) as first,
        backend(two.handle) as second,
        watched(servers=urls(first, second), health=OFTEN | {"expect": ["204..299", 401]}) as gateway,
    ):
        await until(lambda: gateway.healthy == [True, False])
        assert await answers(gateway) == {b"one"}


async def test_a_server_that_does_not_respond_in_time_fails_and_delays_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = Condition(b"one")

    async def stuck(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n")
        assert await connection.gone()

    # So long that a busy machine does not let two checks in a row of the healthy server fail.
    health = {"path": "/up", "interval": 0.02, "timeout": 1.0, "fall": 2}
    with full_backlog() as port:
        async with (
            backend(stuck) as slow,
            backend(one.handle) as first,
            watched(servers=[*urls(slow, first), f"http://{HOST}:{port}"], health=health) as gateway,
        ):
            await until(lambda: gateway.healthy == [False, True, False])
            assert await answers(gateway) == {b"one"}
            why = {r.patgate_fields["server"]: r.patgate_fields["why"] for r in caplog.records}  # type: ignore[attr-defined]
            assert why == {urls(slow)[0]: "no answer in time", f"http://{HOST}:{port}": "no connection in time"}
            # One check at a time, each ends at its deadline.
            assert sum(not each.writer.is_closing() for each in slow.connections) <= 2


async def test_a_server_that_refuses_connections_is_ill_and_its_recovery_clears_its_failures() -> None:
    with refusing() as held:
        async with watched(servers=[f"http://{HOST}:{port_of(held)}"], health=OFTEN) as gateway:
            client = await gateway.client()
            await client.ask(get("/open/a"))
            await until(lambda: gateway.healthy == [False])
            assert (await client.ask(get("/open/a"))).status == 503
            async with backend(Condition(b"back").handle, held):
                await until(lambda: gateway.healthy == [True])
                assert not gateway.servers[0].down(time.monotonic())
                assert (await client.ask(get("/open/a"))).body == b"back"


async def test_a_check_that_is_cancelled_while_it_waits_for_an_answer_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def silent(connection: BackendConnection) -> None:
        await connection.request()
        asked.set()
        if await connection.gone():
            gone.set()

    asked = asyncio.Event()
    async with backend(silent) as one, watched(servers=[f"http://{HOST}:{one.port}"], health=OFTEN) as gateway:
        await asyncio.wait_for(asked.wait(), HANGS_SECONDS)
        gateway.watching = False
        await gateway.watch.close()
        await asyncio.wait_for(gone.wait(), HANGS_SECONDS)


async def test_a_check_reaches_a_unix_socket(tmp_path: Path) -> None:
    one = Condition(b"one", ILL)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = BackendConnection(0, reader, writer)
        try:
            await one.handle(connection)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "app.sock")
    async with watched(servers=[f"unix:{tmp_path}/app.sock"], health=OFTEN) as gateway:
        await until(lambda: gateway.healthy == [False])
        assert field_lines(one.heads[0], "host") == [b"localhost"]
        one.check = WELL
        await until(lambda: gateway.healthy == [True])
        assert await answers(gateway) == {b"one"}
    server.close()


async def test_the_rest_of_a_checks_response_is_read_up_to_a_limit() -> None:
    ends: list[bool] = []

    def sending(size: int) -> Handler:
        async def handle(connection: BackendConnection) -> None:
            await connection.request()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            await connection.taken()
            try:
                for _ in range(0, size, 1000):
                    await connection.send(b"x" * 1000)
            except ConnectionError:
                ends.append(False)
            else:
                ends.append(True)

        return handle

    for size, whole in ((20_000, True), (200_000_000, False)):
        async with backend(sending(size)) as first, watched(servers=urls(first), health=OFTEN) as gateway:
            await until(lambda: ends)
            assert ends[0] is whole
            assert gateway.healthy == [True]
        ends.clear()


async def test_a_replaced_upstream_keeps_its_ill_servers() -> None:
    """A reload does not send requests to a server that is known to be ill."""
    one, two = Condition(b"one", ILL), Condition(b"two")
    async with (
        backend(one.handle) as first,
        backend(two.handle) as second,
        watched(servers=urls(first, second), health=OFTEN) as gateway,
    ):
        await until(lambda: gateway.healthy == [False, True])
        settings = gateway.app.settings.model_copy(update={"max_idle": 3})
        changed = gateway.pipeline.upstreams.prepare({"app": settings})["app"]
        assert changed is not gateway.app
        await gateway.watch.prepare([changed], NEVER)
        assert [server.healthy for server in changed.servers] == [False, True]
        assert gateway.healthy == [False, True]


async def test_without_a_health_section_no_checks_are_sent() -> None:
    async with backend(answering(response())) as first, watched(servers=urls(first)) as gateway:
        sweeps: list[float] = []
        gateway.on_sweep = lambda: sweeps.append(time.monotonic())
        await until(lambda: len(sweeps) > 10)
        assert not first.connections
        assert gateway.gauges("up") == {("app", urls(first)[0]): 1}


async def test_the_checks_of_several_workers_are_spread() -> None:
    """Workers start at the same time; the times of their checks are random."""
    async with watched(servers=["http://127.0.0.1:81"], health={"path": "/up", "interval": 60.0}) as gateway:
        gateway.watching = False
        due = []
        for _ in range(3):
            checks = HealthChecks(get_logger("test"))
            checks.follow(gateway.pipeline.upstreams.pools)
            checks.sweep(1000.0)
            (checked,) = checks._servers.values()
            checks.sweep(checked.due - 0.001)
            assert not task_runs("health check")
            checks.sweep(checked.due)
            assert task_runs("health check")
            # At full precision: two of three random milliseconds of a second are the same once in 300 runs.
            due.append(checked.due)
            await checks.close()
        assert len(set(due)) == 3
        assert all(1000.0 <= moment <= 1001.0 for moment in due)


async def test_a_server_that_is_ill_for_one_replaced_upstream_is_not_ill_for_another() -> None:
    """The same server may fail the check of one upstream and pass that of another."""
    settings = UpstreamSettings.model_validate({"servers": [f"http://{HOST}:9"], "health": {"path": "/up"}})
    checks = HealthChecks(get_logger("test"))
    upstreams = Gateway(9).pipeline.upstreams
    first, second = upstreams.prepare({"first": settings, "second": settings}).values()
    checks.follow((first, second))
    checks.sweep(1000.0)
    first.mark(first.servers[0], healthy=False)
    renewed = tuple(upstreams.prepare({"first": settings, "second": settings}).values())
    assert renewed[0] is not first
    checks.follow(renewed)
    assert [pool.servers[0].healthy for pool in renewed] == [False, True]
    await checks.close()


async def test_a_check_gets_the_headers_that_its_upstream_sets_and_not_those_that_it_removes() -> None:
    one = Condition(b"one")
    own = {"Authorization": "Basic YTpi", "accept": "text/plain"}
    async with (
        backend(one.handle) as first,
        watched(servers=urls(first), health=OFTEN, set_headers=own, remove_headers=["User_Agent"]),
    ):
        await until(lambda: bool(one.heads))
    lines = one.heads[0].rstrip().split(b"\r\n")
    assert lines[2:] == [b"Authorization: Basic YTpi", b"accept: text/plain", b"Connection: close"]
