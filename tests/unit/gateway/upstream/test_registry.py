"""The registry of connection pools: which pools a reload keeps, and what happens to those that it replaces."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.gateway.upstream.registry import UpstreamSet
from proxy.settings.sections.upstreams import Upstream as UpstreamSettings
from tests.support.certificates import pair
from tests.unit.gateway.kit import HOST, BackendConnection, Gateway, answering, get, response, serving, until


def settings(server: str = f"http://{HOST}:9", **more: object) -> UpstreamSettings:
    return UpstreamSettings.model_validate({"servers": [server], **more})


def registry(**upstreams: UpstreamSettings) -> UpstreamSet:
    """A gateway's own registry with these upstreams."""
    made = Gateway(9).pipeline.upstreams
    made.replace(made.prepare(upstreams))
    return made


def test_each_upstream_has_one_pool_in_the_order_of_the_configuration() -> None:
    upstreams = registry(second=settings(), first=settings())
    assert [pool.name for pool in upstreams.pools] == ["second", "first"]
    assert upstreams.pool("first") is upstreams.pools[1]
    with pytest.raises(KeyError):
        upstreams.pool("app")


def test_prepare_keeps_pools_with_equal_settings_and_changes_nothing() -> None:
    upstreams = registry(same=settings(), changed=settings())
    before = upstreams.pools
    prepared = upstreams.prepare({"same": settings(), "changed": settings(max_idle=3), "added": settings()})
    assert prepared["same"] is before[0]
    assert prepared["changed"] is not before[1]
    assert prepared["changed"].settings.max_idle == 3
    assert list(prepared) == ["same", "changed", "added"]
    assert upstreams.pools == before


def test_prepare_reads_the_certificate_files_of_https_servers_again(tmp_path: Path) -> None:
    made = pair(tmp_path, "backend.test")
    secure = settings(f"https://{HOST}:9", tls={"ca": made.certificate})
    upstreams = registry(app=secure)
    assert upstreams.prepare({"app": secure})["app"] is not upstreams.pool("app")
    Path(made.certificate).write_text("no certificate")
    with pytest.raises(OSError):
        upstreams.prepare({"app": secure})


async def test_a_replaced_pool_closes_its_idle_connections_and_each_other_one_after_its_exchange() -> None:
    finish = asyncio.Event()

    async def handle(connection: BackendConnection) -> None:
        while True:
            head = await connection.request()
            if b"/slow" in head:
                await finish.wait()
            await connection.send(response())

    async with serving(handle) as (gateway, backend):
        upstreams = gateway.pipeline.upstreams
        slow, quick = await gateway.client(), await gateway.client()
        slow.send(get("/open/slow"))
        await until(lambda: gateway.active == 1)
        assert (await quick.ask(get("/open/quick"))).status == 200
        replaced = upstreams.pool("app")
        upstreams.replace(upstreams.prepare({"app": replaced.settings.model_copy(update={"max_idle": 7})}))
        (server,) = replaced.servers
        assert not server.idle
        assert server.active == 1
        finish.set()
        assert (await slow.answer()).status == 200
        await until(lambda: len(backend.connections) == 2 and all(each.reader.at_eof() for each in backend.connections))
        assert not server.idle
        assert (await slow.ask(get("/open/quick"))).status == 200
        assert gateway.idle == 1


async def test_discarding_prepared_pools_leaves_those_in_use_alone() -> None:
    async with serving(answering(response())) as (gateway, backend):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).status == 200
        upstreams = gateway.pipeline.upstreams
        upstreams.discard(upstreams.prepare({"app": upstreams.pool("app").settings, "other": settings()}))
        assert gateway.idle == 1
        assert (await client.ask(get("/open/a"))).status == 200
        assert len(backend.connections) == 1


async def test_closing_the_registry_closes_every_idle_connection() -> None:
    async with serving(answering(response())) as (gateway, backend):
        assert (await (await gateway.client()).ask(get("/open/a"))).status == 200
        gateway.pipeline.upstreams.close()
        assert gateway.idle == 0
        await until(lambda: backend.connections[0].reader.at_eof())
