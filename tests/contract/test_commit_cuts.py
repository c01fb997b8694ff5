"""PostgreSQL's connection cut before, during and after COMMIT: a change of a service is whole or absent, as reported.

A relay stands between the store and the server. It sees the message with COMMIT in it, and cuts the connection there;
later connections pass, so the store can look what became of the change.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from proxy.core.errors import OutcomeUnknown, StoreUnavailable
from proxy.store.dialects.postgresql import PostgresqlDatabase
from tests.contract.kit import ADMIN, Kit, opened
from tests.support import stores
from tests.support.dialects import ON_POSTGRESQL
from tests.support.process import LOOPBACK

pytestmark = ON_POSTGRESQL

ANN, BOB = "ann@example.org", "bob@example.org"
_COMMIT = b"COMMIT\0"
"""The end of a simple query (PostgreSQL, "Message Formats", Query)."""


class Cut(StrEnum):
    """Where the connection is cut."""

    BEFORE = "before"
    """The server never gets COMMIT."""
    DURING = "during"
    """The server gets COMMIT and the end of the connection at once."""
    AFTER = "after"
    """The server has committed and answered; the store never gets the answer."""


class Relay:
    """Forwards connections to ``port``, and cuts the next one that commits where ``cut`` says."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.cut: Cut | None = None
        self.cuts = 0
        self.alone = False
        """Whether every connection is refused after the cut."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Relay]:
        server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.alone and self.cuts:
            writer.close()
            return
        from_server, to_server = await asyncio.open_connection(LOOPBACK, self._server_port)
        answers = asyncio.create_task(self._forward(from_server, writer), name="answers")
        try:
            while data := await reader.read(65536):
                cut = self.cut if _COMMIT in data else None
                if cut is None:
                    to_server.write(data)
                    await to_server.drain()
                    continue
                self.cut, self.cuts = None, self.cuts + 1
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)
                if cut is not Cut.BEFORE:
                    to_server.write(data)
                    await to_server.drain()
                if cut is Cut.AFTER:
                    assert await from_server.read(65536), "the server answered"
                break
        finally:
            answers.cancel()
            # What was sent to the server arrives before the end of the connection.
            to_server.close()
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


VERBS: Mapping[str, Callable[[Kit, str], Awaitable[object]]] = {
    "mint": lambda kit, _: kit.mint(ANN, "another"),
    "revoke": lambda kit, token: kit.tokens.revoke(ADMIN, token),
    "rotate": lambda kit, token: kit.tokens.rotate(ADMIN, token),
    "role": lambda kit, _: kit.users.set_role(ADMIN, ANN, "viewer"),
}


async def state(kit: Kit) -> list[object]:
    """What a verb changes, and what goes with each change."""
    async with kit.store.read() as rows:
        queries = (
            "SELECT id, status, hash FROM tokens ORDER BY id",
            "SELECT id, role FROM users ORDER BY id",
            "SELECT max(epoch), count(*) FROM changes",
            "SELECT n FROM change_head",
            "SELECT count(*), max(epoch) FROM audit_events",
        )
        return [[tuple(row) for row in await rows.connection.exec_driver_sql(query)] for query in queries]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("cut", Cut)
async def test_a_change_whose_commit_is_cut_is_reported_as_it_is(tmp_path: Path, verb: str, cut: Cut) -> None:
    address = stores.address_of(tmp_path)
    async with opened(tmp_path) as kit:
        await kit.basics()
        token = (await kit.mint(ANN, "t")).view.id
        before = await state(kit)
    port = urlsplit(address).port
    assert port is not None
    async with Relay(port).serving() as relay:
        relayed = address.replace(f":{port}/", f":{relay.port}/")
        with stores.elsewhere(lambda _: relayed):
            async with opened(tmp_path) as kit:
                assert isinstance(kit.store._database, PostgresqlDatabase)
                relay.cut = cut
                try:
                    await VERBS[verb](kit, token)
                    acknowledged = True
                except OutcomeUnknown:
                    pytest.fail("the server can be asked, so nothing is unknown")
                except StoreUnavailable:
                    acknowledged = False
                assert relay.cuts == 1
                after = await state(kit)
                assert (after != before) == acknowledged
                if cut is not Cut.DURING:
                    assert acknowledged == (cut is Cut.AFTER)
                # The next change has the next number, and the log is whole.
                epoch = await kit.intact()
                await kit.users.add(ADMIN, BOB, "viewer")
                assert await kit.intact() == epoch + 1
    # As a node that starts now finds it.
    async with opened(tmp_path) as kit:
        assert (await state(kit))[0] == after[0]
        assert await kit.intact() == epoch + 1


@pytest.mark.parametrize("verb", VERBS)
async def test_a_change_is_in_doubt_while_nobody_can_be_asked(tmp_path: Path, verb: str) -> None:
    """The answer is neither "done" nor "nothing changed"."""
    address = stores.address_of(tmp_path)
    async with opened(tmp_path) as kit:
        await kit.basics()
        token = (await kit.mint(ANN, "t")).view.id
    port = urlsplit(address).port
    assert port is not None
    async with Relay(port).serving() as relay:
        relayed = address.replace(f":{port}/", f":{relay.port}/")
        with stores.elsewhere(lambda _: relayed):
            async with opened(tmp_path) as kit:
                relay.cut, relay.alone = Cut.AFTER, True
                with pytest.raises(OutcomeUnknown):
                    await VERBS[verb](kit, token)
                relay.alone = False
                # It was stored: the next change comes after it.
                epoch = await kit.intact()
                await kit.users.add(ADMIN, BOB, "viewer")
                assert await kit.intact() == epoch + 1
