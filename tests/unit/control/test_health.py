"""Health and metrics on the TCP listener, the ``Host`` check, and the API without a credential."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.observe import metrics
from proxy.observe.snapshot import Snapshot
from proxy.settings.model import Settings
from tests.unit.authority.waiting import until
from tests.unit.authority.workers.test_server import Worker
from tests.unit.control.conftest import World


async def _samples(world: World) -> dict[tuple[str, tuple[str, ...]], float]:
    async with world.tcp.get("/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = await answer.text()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def _worker(settings: Settings, n: int) -> Worker:
    worker = Worker(*await asyncio.open_unix_connection(str(settings.data_dir / "link.sock")))
    await worker.hello(worker=n, pid=100 + n)
    return worker


async def test_the_process_is_alive_at_once_and_ready_with_an_up_to_date_worker(
    world: World, settings: Settings
) -> None:
    for path in ("/livez", "/startupz"):
        async with world.tcp.get(path) as answer:
            assert (answer.status, await answer.json()) == (200, {"status": "ok"})
    async with world.tcp.get("/readyz") as answer:
        assert answer.status == 503
        assert [r["check"] for r in (await answer.json())["reasons"]] == ["workers"]
    worker = await _worker(settings, 0)
    async with world.tcp.get("/readyz") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ready"})
    behind = Snapshot(gauges={metrics.EPOCH_LAG.name: {(): 1000}})
    worker.send({"op": "counters", "snapshot": behind.to_wire()})
    await until(lambda: [w.lag for w in world.authority._link.workers()] == [1000])
    async with world.tcp.get("/readyz") as answer:
        assert answer.status == 503
    worker.writer.close()


async def test_metrics_are_summed_over_running_and_ended_workers(world: World, settings: Settings) -> None:
    workers = [await _worker(settings, n) for n in range(2)]
    for n, worker in enumerate(workers):
        snapshot = Snapshot(
            counters={metrics.REQUESTS.name: {("/a", "allowed", "allowed"): 10 + n}},
            gauges={metrics.EPOCH_LAG.name: {(): n}, metrics.CACHE_ENTRIES.name: {(): 5}},
        )
        worker.send({"op": "counters", "snapshot": snapshot.to_wire()})
    await until(lambda: world.authority.metrics().gauge(metrics.CACHE_ENTRIES) == 10)
    samples = await _samples(world)
    assert samples["patgate_requests_total", ("allowed", "allowed", "/a")] == 21
    assert samples["patgate_epoch_lag", ()] == 1
    assert samples["patgate_workers", ()] == 2
    assert samples["patgate_epoch", ()] == world.authority.epoch
    assert samples["patgate_lease_seconds", ()] > 0
    workers[0].writer.close()
    await until(lambda: len(world.authority._link.workers()) == 1)
    samples = await _samples(world)
    assert samples["patgate_requests_total", ("allowed", "allowed", "/a")] == 21
    assert samples["patgate_cache_entries", ()] == 5
    workers[1].writer.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8081", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:8081", 200),
        ("[::1]:8081", 200),
        ("10.1.2.3", 200),
        ("gate.example.org", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("gate.example.org@evil.example", 421),
        ("", 421),
    ],
)
async def test_the_host_must_be_one_of_ours(world: World, host: str, status: int) -> None:
    async with world.tcp.get("/livez", headers={"Host": host}) as answer:
        assert answer.status == status


@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: localhost\r\n"])
async def test_a_missing_or_repeated_host_is_refused(world: World, hosts: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(b"GET /livez HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n")
    answer = await reader.read()
    assert answer.split(b" ")[1] in (b"400", b"421")
    writer.close()


async def test_the_api_refuses_requests_without_a_credential(world: World) -> None:
    for path, status in (("/api/v1/users", 401), ("/api/v1/tokens", 401), ("/api/v1/nothing", 404), ("/", 404)):
        async with world.tcp.get(path) as answer:
            assert (answer.status, answer.content_type) == (status, "application/problem+json")
