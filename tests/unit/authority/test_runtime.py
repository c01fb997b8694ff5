"""The assembled authority over a real store: every acknowledged change is on the page before it is acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.authority.runtime import CONFIGURATION, Authority
from proxy.core.errors import ConfigurationError, StoreBehind, WrongKey
from proxy.core.ipc.clock import boottime_ns
from proxy.core.ipc.shared_memory import PageView
from proxy.core.ipc.wire import grant_from_wire, refused_from_wire
from proxy.core.model import Actor, ActorKind
from proxy.core.reasons import Reason
from proxy.core.token import digest
from proxy.observe import metrics
from proxy.services.audit.filters import AuditFilter
from proxy.services.tokens.issuance import TokenRequest
from proxy.settings.model import Settings
from tests.unit.authority.workers.test_server import Worker

ACTOR = Actor(kind=ActorKind.SYSTEM, id="test", name="test")


@pytest.fixture
async def authority(settings: Settings) -> AsyncIterator[Authority]:
    async with Authority(settings) as authority:
        yield authority


async def _worker(settings: Settings) -> tuple[Worker, bytes]:
    worker = Worker(*await asyncio.open_unix_connection(str(settings.data_dir / "link.sock")))
    greeting = await worker.hello()
    return worker, bytes.fromhex(greeting["cache_key"])


async def test_a_minted_token_resolves_with_the_digest_that_workers_compute(
    authority: Authority, settings: Settings
) -> None:
    await authority.services.users.add(ACTOR, "ada@example.org", "editor")
    created = await authority.services.tokens.create(ACTOR, TokenRequest(user="ada@example.org", name="ci"))
    worker, cache_key = await _worker(settings)
    answer = await worker.ask(op="resolve", prefixes=[created.view.prefix])
    grant = grant_from_wire(answer["found"][0]["grant"])
    assert (grant.email, grant.role, grant.permissions.texts) == ("ada@example.org", "editor", ("things:*",))
    assert grant.digest == digest(cache_key, created.value.encode())
    assert answer["as_of"] == authority.epoch
    worker.writer.close()


async def test_each_change_is_announced_before_it_is_acknowledged(authority: Authority, settings: Settings) -> None:
    await authority.services.users.add(ACTOR, "ada@example.org", "editor")
    created = await authority.services.tokens.create(ACTOR, TokenRequest(user="ada@example.org", name="ci"))
    worker, _ = await _worker(settings)
    before = authority.epoch
    await authority.services.users.set_role(ACTOR, "ada@example.org", "viewer")
    assert authority.epoch == before + 1
    push = await worker.receive()
    assert (push["since"], push["epoch"]) == (before, before + 1)
    answer = await worker.ask(op="resolve", prefixes=[created.view.prefix])
    grant = grant_from_wire(answer["found"][0]["grant"])
    assert grant.role == "viewer"
    assert set(push["keys"]) & set(grant.depends)
    await authority.services.tokens.revoke(ACTOR, created.view.id)
    await worker.receive()
    answer = await worker.ask(op="resolve", prefixes=[created.view.prefix])
    assert refused_from_wire(answer["found"][0]["refused"]).reason is Reason.TOKEN_REVOKED
    changes = await worker.ask(op="changes", since=before)
    assert (changes["epoch"], changes["reset"]) == (before + 2, False)
    worker.writer.close()


async def test_a_token_without_a_digest_is_verified_once_and_its_digest_kept(
    authority: Authority, settings: Settings
) -> None:
    await authority.services.users.add(ACTOR, "ada@example.org", "editor")
    created = await authority.services.tokens.create(ACTOR, TokenRequest(user="ada@example.org", name="ci"))
    store = authority._store
    stored = await store.token_hash(created.view.id)
    assert stored is not None
    assert stored.startswith("$argon2id$")
    async with store.change(ACTOR) as change:
        await change.tokens._update(created.view.id, digest=None)
        change.touched(f"token:{created.view.id}")
        change.audit("test.digest.forget", target_kind="token", target_id=created.view.id)
    worker, cache_key = await _worker(settings)
    for _ in range(2):
        answer = await worker.ask(op="verify", prefix=created.view.prefix, token=created.value)
        assert grant_from_wire(answer["grant"]).digest == digest(cache_key, created.value.encode())
    answer = await worker.ask(op="resolve", prefixes=[created.view.prefix])
    assert grant_from_wire(answer["found"][0]["grant"]).digest is not None
    counted = authority.metrics().counters[metrics.ARGON2.name]
    assert counted == {("hashed",): 1, ("matched",): 1}
    worker.writer.close()


async def test_readiness_names_what_is_missing(authority: Authority, settings: Settings) -> None:
    assert set(await authority.unready()) == {"workers"}
    first, _ = await _worker(settings)
    assert await authority.unready() == {"workers": "1 of 2 gateway workers are linked to the authority"}
    again, _ = await _worker(settings)
    assert set(await authority.unready()) == {"workers"}, "two links of one worker are one worker"
    second = Worker(*await asyncio.open_unix_connection(str(settings.data_dir / "link.sock")))
    await second.hello(worker=1)
    assert await authority.unready() == {}
    for worker in (first, again, second):
        worker.writer.close()


async def test_the_lease_is_held_while_it_runs_and_ended_when_it_stops(settings: Settings) -> None:
    async with Authority(settings) as authority:
        assert 0 < authority.metrics().gauge(metrics.LEASE_SECONDS) <= settings.lease  # type: ignore[operator]
        page = PageView(memoryview(bytearray((settings.data_dir / "page").read_bytes())))
        assert page.lease_until_ns > boottime_ns()
    page = PageView(memoryview(bytearray((settings.data_dir / "page").read_bytes())))
    assert page.lease_until_ns == 0
    assert not (settings.data_dir / "link.sock").exists()


async def test_a_restored_older_store_is_refused_until_accepted(settings: Settings, data_dir: Path) -> None:
    async with Authority(settings) as authority:
        await authority.services.users.add(ACTOR, "ada@example.org", "editor")
        created = await authority.services.tokens.create(ACTOR, TokenRequest(user="ada@example.org", name="ci"))
    backup = (data_dir / "patgate.db").read_bytes()
    async with Authority(settings) as authority:
        await authority.services.tokens.revoke(ACTOR, created.view.id)
        head, seen = str((await authority.services.audit.verify(ACTOR)).head), authority.epoch
    for path in data_dir.glob("patgate.db*"):
        path.unlink()
    (data_dir / "patgate.db").write_bytes(backup)
    for _ in range(2):
        with pytest.raises(StoreBehind):
            async with Authority(settings):
                pass
    async with Authority(settings, accept_older_store=True) as authority:
        assert authority.epoch > 0
    async with Authority(settings) as authority:
        # The log has an event for it, and the former head shows that it is another log.
        (event,) = (await authority.services.audit.list(ACTOR, AuditFilter(action="account.store."))).items
        assert event.entry.action == "account.store.accept_older"
        assert event.entry.details == {"seen": seen, "accepted": seen - 1}
        assert (await authority.services.audit.verify(ACTOR)).problem is None
        assert (await authority.services.audit.verify(ACTOR, head=head)).problem is not None


async def test_another_key_is_refused(settings: Settings, data_dir: Path) -> None:
    async with Authority(settings):
        pass
    (data_dir / "secret.key").write_text("x" * 40)
    with pytest.raises(WrongKey):
        async with Authority(settings):
            pass


async def test_a_failed_start_leaves_nothing_open(settings: Settings, data_dir: Path) -> None:
    deep = data_dir / ("d" * 100)
    deep.mkdir()
    with pytest.raises(ConfigurationError):
        async with Authority(settings.model_copy(update={"data_dir": deep})):
            pass
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert tasks == []


async def test_roles_set_by_hand_survive_a_restart_with_the_same_configuration(settings: Settings) -> None:
    async with Authority(settings) as authority:
        await authority.services.roles.set(ACTOR, "viewer", ["things:list"])
    async with Authority(settings) as authority:
        assert (await authority.services.roles.show(CONFIGURATION, "viewer")).permissions == ("things:list",)
