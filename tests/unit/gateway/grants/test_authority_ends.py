"""The worker's client against the authority's real server that dies, restarts, or never greets."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from proxy.authority.grants.page_writer import open_page
from proxy.core.errors import AuthorityUnavailable
from proxy.core.model import Grant, RefusedGrant
from proxy.core.reasons import Reason
from proxy.gateway.grants import authority_client
from proxy.gateway.grants.authority_client import AuthorityLink
from tests.support.process import HANGS_SECONDS
from tests.unit.authority.waiting import until
from tests.unit.authority.workers.test_server import World
from tests.unit.gateway.kit import make_cache

PREFIX = "acme_pat_000000000000"


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not tmp_path: the path of a unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        yield Path(name)


@asynccontextmanager
async def authority(data_dir: Path) -> AsyncIterator[World]:
    """An authority's server over grants in memory; leaving the context ends it."""
    page = open_page(data_dir, store_epoch=1)
    world = World(data_dir, page)
    await world.server.start()
    try:
        yield world
    finally:
        await world.close()
        page.close()


@asynccontextmanager
async def linking(data_dir: Path) -> AsyncIterator[tuple[AuthorityLink, list[bool]]]:
    """A link that reconnects, and the states that it reported."""
    states: list[bool] = []
    link = AuthorityLink(data_dir / "link.sock", slot=0, cache=make_cache(), on_state=states.append)
    link.start()
    try:
        yield link, states
    finally:
        await link.close()


@asynccontextmanager
async def rude(data_dir: Path) -> AsyncIterator[list[float]]:
    """A server that closes every connection without a greeting; yields the time of each."""
    came: list[float] = []

    def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(time.monotonic())
        writer.close()

    server = await asyncio.start_unix_server(close, data_dir / "link.sock")
    try:
        yield came
    finally:
        server.close()
        await server.wait_closed()
        (data_dir / "link.sock").unlink(missing_ok=True)


async def test_it_reports_changes_of_its_state_and_no_failed_attempts(data_dir: Path) -> None:
    async with linking(data_dir) as (link, states):
        async with rude(data_dir) as came:
            await until(lambda: len(came) >= 3)
        assert (states, link.up) == ([], False)
        async with authority(data_dir):
            await until(lambda: link.up)
        await until(lambda: not link.up)
        async with rude(data_dir) as came:
            await until(lambda: len(came) >= 3)
        assert states == [True, False]


async def test_attempts_come_after_growing_pauses_up_to_a_quarter_of_a_second(data_dir: Path) -> None:
    async with rude(data_dir) as came, linking(data_dir):
        await until(lambda: len(came) >= 7)
    pauses = [after - before for before, after in pairwise(came)]
    assert min(pauses) >= 0.045
    assert min(pauses[3:]) >= 0.24
    assert sum(pauses[:3]) >= 0.34


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request waits for the next authority for as long as a busy machine needs to start one."""
    monkeypatch.setattr(authority_client, "_PATIENCE_SECONDS", HANGS_SECONDS)


@pytest.mark.usefixtures("patient")
async def test_a_request_without_an_authority_is_answered_by_the_next_one(data_dir: Path) -> None:
    async with linking(data_dir) as (link, _):
        async with authority(data_dir):
            await until(lambda: link.up)
        await until(lambda: not link.up)
        asked = asyncio.create_task(link.lookup(PREFIX), name="lookup")
        synced = asyncio.create_task(link.sync(1), name="sync")
        async with authority(data_dir):
            answer = await asked
            await synced
    assert isinstance(answer.found, RefusedGrant)
    assert (answer.as_of, answer.found.reason) == (1, Reason.TOKEN_UNKNOWN)


@pytest.mark.usefixtures("patient")
async def test_a_request_that_lost_its_authority_is_answered_by_the_next_one(data_dir: Path) -> None:
    async with linking(data_dir) as (link, _):
        async with authority(data_dir) as first:
            await until(lambda: link.up)
            answering = asyncio.Event()

            async def never(_prefixes: Sequence[str]) -> tuple[int, list[Grant | RefusedGrant]]:
                answering.set()
                await asyncio.Event().wait()
                raise AssertionError

            first.grants.resolve = never  # type: ignore[method-assign,assignment]
            asked = asyncio.create_task(link.lookup(PREFIX), name="lookup")
            await answering.wait()
        async with authority(data_dir):
            assert (await asked).as_of == 1


@pytest.mark.alone
async def test_a_request_waits_for_an_authority_but_not_for_long(data_dir: Path) -> None:
    async with linking(data_dir) as (link, _):
        begun = time.monotonic()
        with pytest.raises(AuthorityUnavailable):
            await link.lookup(PREFIX)
        assert 0.9 < time.monotonic() - begun < 3.0
    with pytest.raises(AuthorityUnavailable):
        await link.lookup(PREFIX)
