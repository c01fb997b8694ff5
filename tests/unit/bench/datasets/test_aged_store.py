"""A store that is filled directly is as patgate would have made it: its own schema, a valid audit log."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench.datasets.aged_store import Filled, fill
from bench.datasets.audit_log import Logged, fill_log
from bench.load.workload import BRAND
from proxy.core.model import Grant, TokenStatus
from proxy.core.token import TokenFormat, verify_digest
from proxy.services import derived_secrets, grants
from proxy.settings.sources.secret import load_or_create
from proxy.store.address import sqlite_path, store_url
from proxy.store.audit.queries import LogQuery, SortOrder
from proxy.store.store import Store
from proxy.store.tokens.queries import TokenListQuery

NOW = 1_790_000_000.0
TOKENS, EVENTS = 3000, 5000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Filled, Logged]:
    directory = tmp_path_factory.mktemp("fill")
    filled = fill(directory / "data", tokens=TOKENS, seed=1, now=NOW)
    return filled, fill_log(filled, events=EVENTS, seed=2)


async def _opened(filled: Filled) -> Store:
    directory = filled.database.parent
    url = store_url("sqlite", directory)
    key = load_or_create(directory, sqlite_path(url))
    return await Store.open(url, key_fingerprint=derived_secrets.fingerprint(key))


async def test_the_log_is_valid_and_has_the_requested_events(made: tuple[Filled, Logged]) -> None:
    filled, logged = made
    store = await _opened(filled)
    try:
        verified = await store.verify_audit()
        assert (verified.problem, verified.events, logged.events) == (None, EVENTS, EVENTS)
        async with store.read() as rows:
            for token in logged.busy[:3]:
                page = await rows.log.page(LogQuery(actor_id=token.id), SortOrder.NEWEST, None, 10)
                assert page.entries, "a busy token has done something"
            for decision in logged.decisions[:3]:
                page = await rows.log.page(LogQuery(request_id=decision), SortOrder.NEWEST, None, 10)
                assert [entry.decision_id for entry in page.entries] == [decision]
    finally:
        await store.close()


async def test_tokens_have_every_status_and_those_with_a_known_value_are_accepted(
    made: tuple[Filled, Logged],
) -> None:
    filled, _ = made
    store = await _opened(filled)
    try:
        async with store.read() as rows:
            found = Counter[TokenStatus]()
            for status in TokenStatus:
                page = await rows.tokens.page(TokenListQuery(status=status), after=None, limit=TOKENS, now=NOW)
                found[status] = len(page)
        assert min(found.values()) > 0
        assert found.total() == TOKENS
        cache_key = derived_secrets.cache_key(load_or_create(filled.database.parent, filled.database))
        parsed = [TokenFormat(BRAND).parse(token) for token in filled.valid_tokens]
        _, verdicts = await grants.resolve(store, [one.prefix for one in parsed if one is not None], NOW)
        assert len(verdicts) > 100
        for token, verdict in zip(filled.valid_tokens, verdicts, strict=True):
            assert isinstance(verdict, Grant)
            assert verdict.digest is not None
            assert verify_digest(cache_key, token.encode(), verdict.digest)
    finally:
        await store.close()


def test_the_same_seed_gives_the_same_tokens(tmp_path: Path) -> None:
    first, second = (fill(tmp_path / name, tokens=300, seed=3, now=NOW) for name in ("one", "two"))
    assert first.tokens == second.tokens
    assert first.valid_tokens == second.valid_tokens
