"""What operators see of several nodes, and what a fenced node believes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.authority.runtime import Authority
from proxy.core.errors import StoreUnavailable
from proxy.observe import metrics
from proxy.services.tokens.issuance import TokenRequest
from tests.support.postgres import Postgres
from tests.unit.authority.consistency.kit import ACTOR, node_settings
from tests.unit.authority.waiting import until

ROLES = {"editor": ["things:*"], "viewer": ["things:read"]}
NARROWER = {"editor": ["things:read"], "viewer": ["things:read"]}


@pytest.fixture
def node(store_url: str, data_dir: Path) -> Any:
    def opened(name: str, **more: Any) -> Authority:
        return Authority(node_settings(data_dir / name, store_url, **more))

    return opened


async def test_a_node_with_another_configuration_is_seen_also_after_a_reload(
    node: Any, store_url: str, data_dir: Path
) -> None:
    async with node("a") as a, node("b", audit={"requests": "all"}) as b:
        await a._watch.look()
        assert [view.config_matches for view in await a.nodes()] == [True, False]
        assert [view.config_matches for view in await b.nodes()] == [False, True]
        gauges = a.metrics()
        assert (gauges.gauge(metrics.NODES), gauges.gauge(metrics.CONFIG_MISMATCH)) == (2, 1)
        await b.follow(node_settings(data_dir / "b", store_url, lease=0.8))
        await b.nodes()
        other = (await a.nodes())[1]
        assert not other.config_matches, "the lease is part of the configuration"
        assert other.lease == 0.8
        await b.follow(node_settings(data_dir / "b", store_url))
        await b._watch.look()
        assert [view.config_matches for view in await a.nodes()] == [True, True]
        await a._watch.look()
        assert a.metrics().gauge(metrics.CONFIG_MISMATCH) == 0


async def test_a_change_is_timed_until_every_node_has_it(node: Any) -> None:
    async with node("a") as a, node("b"):
        before = sum(a.metrics().histograms[metrics.ACKNOWLEDGEMENT_SECONDS.name][()].counts)
        await a.services.users.add(ACTOR, "ada@example.org", "editor")
        assert sum(a.metrics().histograms[metrics.ACKNOWLEDGEMENT_SECONDS.name][()].counts) == before + 1


async def test_a_start_with_older_roles_gives_no_permission_back_until_they_are_applied(
    node: Any, store_url: str, data_dir: Path
) -> None:
    async def editor(authority: Authority) -> tuple[str, ...]:
        permissions: tuple[str, ...] = (await authority.services.roles.show(ACTOR, "editor")).permissions
        return permissions

    async with node("a", roles=ROLES) as a:
        await a.follow(node_settings(data_dir / "a", store_url, roles=NARROWER))
        async with node("b", roles=ROLES) as b:
            assert await editor(b) == ("things:read",)
            assert b.metrics().gauge(metrics.ROLES_SUPERSEDED) == 1
            assert a.metrics().gauge(metrics.ROLES_SUPERSEDED) == 0
            assert (await b.services.roles.apply(ACTOR)).changed == ("editor",)
            assert await editor(a) == ("things:*",)
            for authority, superseded in ((a, 1), (b, 0)):
                await authority._watch.look()
                assert authority.metrics().gauge(metrics.ROLES_SUPERSEDED) == superseded
            # A reload with the same roles is no reason to apply them.
            await a.follow(node_settings(data_dir / "a", store_url, roles=NARROWER))
            assert await editor(a) == ("things:*",)


async def test_a_fenced_node_believes_no_token_of_the_store_that_it_refuses(
    node: Any, store_url: str, postgres: Postgres
) -> None:
    async with node("a") as a:
        await a.services.users.add(ACTOR, "ada@example.org", "editor")
        created = await a.services.tokens.create(ACTOR, TokenRequest(user="ada@example.org", name="ci"))
        assert await a.verify(created.value, prove=True) is not None
        assert a.metrics().gauge(metrics.STORE_FENCED) == 0
        last = await a._store.epoch()
        await until(lambda: _remembered(a) == last)
        # Another change with the number of the last one: as after a failover to a standby without it.
        postgres.psql("UPDATE change_head SET mark = '\\x00'", store_url)
        postgres.psql("UPDATE changes SET mark = '\\x00' WHERE epoch = (SELECT max(epoch) FROM changes)", store_url)
        await until(lambda: "fenced" in a._membership.unready())
        with pytest.raises(StoreUnavailable, match="this node is fenced and accepts no token"):
            await a.verify(created.value, prove=True)
        assert a.metrics().gauge(metrics.STORE_FENCED) == 1
        await a.services.nodes.list(ACTOR)
        await a.services.nodes.accept(ACTOR)
        assert await a.verify(created.value, prove=True) is not None
        assert a.metrics().gauge(metrics.STORE_FENCED) == 0


def _remembered(authority: Authority) -> int:
    """The number of the change that the node remembers, which a renewal reads."""
    memory = None if authority._membership is None else authority._membership._node._memory
    return 0 if memory is None else memory.n
