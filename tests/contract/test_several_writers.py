"""Several processes change one store: nothing is lost or half done, and every answer waits until the others know.

Each ``Store`` here has connections of its own, as that of another node has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.errors import Conflict, InDoubt, NotFound, StoreUnavailable
from proxy.core.ipc.clock import boottime_ns
from proxy.store import shared_recording, tables
from proxy.store.dialects import postgresql
from proxy.store.dialects.postgresql import PostgresqlDialect
from proxy.store.feed import Head
from proxy.store.store import Store
from proxy.store.tokens.usage import Use
from proxy.store.upkeep.batches import Batches
from proxy.store.upkeep.writing import written
from tests.contract.kit import ADMIN, FINGERPRINT, by_itself, opened
from tests.contract.writers import add, request, writers
from tests.support import stores
from tests.support.dialects import ON_POSTGRESQL, PATIENT
from tests.support.postgres import Postgres
from tests.support.process import HANGS_SECONDS
from tests.unit.authority.waiting import until

pytestmark = ON_POSTGRESQL

ANN = "ann@example.org"


async def scalar(directory: Path, query: sa.Select[tuple[object]]) -> object:
    async with by_itself(directory) as connection:
        return (await connection.execute(query)).scalar_one_or_none()


@dataclass
class Waits:
    """``Store.known`` of a store: notes the numbers, and waits while ``held``."""

    store: Store
    asked: list[int] = field(default_factory=list)
    free: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.store.known = self.known
        self.free.set()

    async def known(self, number: int, since: int) -> None:
        assert 0 < since <= boottime_ns()
        self.asked.append(number)
        await self.free.wait()


class Cutter:
    """A TCP proxy in front of the server, which cuts a connection at its next COMMIT if ``at`` says so.

    ``before``: COMMIT does not reach the server. ``during``: it does, and both sides are closed at once. ``after``: the
    server has answered, and the answer is dropped. ``hold``: COMMIT is kept, and the connection stays until the server
    ends it.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self.at = ""
        self.cut = 0
        self.down = False
        """Whether new connections are refused after a cut."""

    async def __aenter__(self) -> Cutter:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.down:
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        answered = asyncio.Event()
        cutting = ""

        async def down() -> None:
            while data := await up_reader.read(65536):
                if cutting:
                    answered.set()
                    return
                writer.write(data)
            writer.close()

        back = asyncio.create_task(down(), name="down")
        try:
            while data := await reader.read(65536):
                if self.at and b"COMMIT\0" in data:
                    cutting, self.at = self.at, ""
                    self.cut += 1
                    if cutting in ("during", "after"):
                        up_writer.write(data)
                        await up_writer.drain()
                    if cutting == "after":
                        await answered.wait()
                    if cutting == "hold":
                        await back
                    return
                up_writer.write(data)
        finally:
            back.cancel()
            writer.transport.abort()
            up_writer.transport.abort()


@asynccontextmanager
async def cuttable(directory: Path, postgres: Postgres) -> AsyncIterator[tuple[Store, Cutter]]:
    """A store behind a ``Cutter``."""
    address = stores.address_of(directory)
    async with Cutter(postgres.port) as cutter:
        through = address.replace(f":{postgres.port}/", f":{cutter.port}/")
        assert through != address
        store = await Store.open(through, key_fingerprint=FINGERPRINT)
        try:
            yield store, cutter
        finally:
            await store.close()


async def test_changes_of_several_writers_have_numbers_in_the_order_of_their_commits(tmp_path: Path) -> None:
    async with writers(tmp_path, 3) as (one, two, three):
        seen: dict[str, int] = {}

        async def change(store: Store, key: str) -> None:
            await add(store, key)
            # What is acknowledged has a number that is not greater than this.
            seen[key] = await store.epoch()

        each = [(store, f"{name}{number}") for number in range(8) for name, store in zip("abc", (one, two, three))]  # noqa: B905
        await asyncio.gather(*(change(store, key) for store, key in each))
        async with one.read() as rows:
            query = sa.select(tables.changes.c.epoch, tables.changes.c.touched, tables.changes.c.mark)
            found = (await rows.connection.execute(query.order_by(tables.changes.c.epoch))).all()
            head = (await rows.connection.execute(sa.select(tables.change_head))).one()
        assert [row.epoch for row in found] == list(range(1, 25))
        assert sorted(key for row in found for key in row.touched) == sorted(seen)
        assert all(row.epoch <= seen[row.touched[0]] for row in found)
        assert len({bytes(row.mark) for row in found}) == 24
        assert (head.n, head.mark) == (24, found[-1].mark)
        checked = await two.verify_audit()
        assert (checked.problem, checked.events) == (None, 24)
        assert len((await three.changes_since(0)).keys) == 24


async def test_a_change_sees_what_the_one_before_it_has_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit, writers(tmp_path) as (one, two):
        await kit.basics()

        async def count(store: Store) -> None:
            async with store.change(ADMIN) as change:
                role = await change.roles.get("viewer")
                assert role is not None
                await change.roles.set("viewer", [*role.permissions, f"x{len(role.permissions)}:read"], 1.0)
                change.touched("role:viewer")
                change.audit("test.change", target_kind="test", target_id="viewer")

        await asyncio.gather(*(count(store) for store in (one, two) * 6))
        role = await kit.roles.show(ADMIN, "viewer")
    assert len(role.permissions) == 2 + 12


async def test_every_answer_that_reveals_the_state_waits_until_it_is_known(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await kit.basics()
        made = await kit.mint(ANN, "t")
        waits = Waits(kit.store)
        last = await kit.store.epoch()
        await kit.tokens.revoke(ADMIN, made.view.id)
        assert waits.asked == [last + 1]
        await kit.tokens.revoke(ADMIN, made.view.id)
        assert waits.asked[1:] == [last + 1], "there was nothing to do"
        with pytest.raises(NotFound):
            await kit.tokens.revoke(ADMIN, "0" * 12)
        assert waits.asked[2:] == [last + 1], "it was refused"
        with pytest.raises(Conflict):
            await kit.users.add(ADMIN, ANN, "viewer")
        with pytest.raises(NotFound):
            await kit.tokens.show(ADMIN, "0" * 12)
        await kit.tokens.show(ADMIN, made.view.id)
        assert waits.asked[3:] == [last + 1] * 3
        waits.asked.clear()
        await kit.resolve(made.view.prefix)
        await kit.store.changes_since(0)
        await kit.store.token_hash(made.view.id)
        await kit.store.prune(kit.clock.now)
        assert waits.asked == [], "what a node serves does not wait"


async def test_nothing_is_locked_while_a_change_waits_and_it_stands_without_its_caller(tmp_path: Path) -> None:
    async with writers(tmp_path) as (one, two):
        waits = Waits(one)
        waits.free.clear()
        # More than the connections that write.
        waiting = [asyncio.create_task(add(one, f"k{number}"), name="waiting") for number in range(6)]
        await until(lambda: len(waits.asked) == 6)
        await add(two, "other")
        assert not any(task.done() for task in waiting)
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        waits.free.set()
        await asyncio.gather(*waiting[1:])
        assert set((await two.changes_since(0)).keys) == {*(f"k{number}" for number in range(6)), "other"}


async def test_a_change_that_is_not_admitted_changes_nothing(tmp_path: Path) -> None:
    async with writers(tmp_path) as (one, two):
        calls = 0

        def fenced(head: Head | None) -> None:
            nonlocal calls
            calls += 1
            assert (head is None) == (calls == 1)
            if calls == 2:
                raise StoreUnavailable("the store has another history")

        one.admit = fenced
        with pytest.raises(StoreUnavailable, match="another history"):
            await add(one, "k")
        assert (calls, await two.epoch()) == (2, 0), "asked before the lock, and again when it has it"


@pytest.mark.parametrize("at", ["before", "during", "after"])
async def test_a_change_whose_connection_is_cut_at_its_commit_is_acknowledged_if_it_is_stored(
    tmp_path: Path, postgres: Postgres, at: str
) -> None:
    async with cuttable(tmp_path, postgres) as (store, cutter):
        await add(store, "first")
        waits = Waits(store)
        cutter.at = at
        try:
            await add(store, "second")
            acknowledged = True
        except StoreUnavailable as error:
            assert "nothing was changed" in str(error)
            acknowledged = False
        assert cutter.cut == 1
        stored = (await store.changes_since(1)).keys == ("second",)
        assert stored == acknowledged
        assert stored == {"before": False, "after": True}.get(at, stored)
        assert waits.asked == ([2] if stored else []), "an acknowledged change waits until it is known"
        await add(store, "third")
        assert await store.epoch() == (3 if stored else 2)
        assert (await store.verify_audit()).problem is None
        assert await store.audit_tail_problem() is None


async def test_a_commit_that_gets_no_answer_ends_at_its_deadline_and_is_resolved(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "POSTGRESQL", PostgresqlDialect(replace(PATIENT, commit=0.5, idle=1.0)))
    async with cuttable(tmp_path, postgres) as (store, cutter):
        cutter.at = "hold"
        async with asyncio.timeout(HANGS_SECONDS):
            # The server ends the transaction that stands still, which frees the lock for the one who looks.
            with pytest.raises(StoreUnavailable, match="nothing was changed"):
                await add(store, "k")
        assert (cutter.cut, await store.epoch()) == (1, 0)


async def test_many_commits_in_doubt_at_once_leave_connections_to_resolve_them(
    tmp_path: Path, postgres: Postgres
) -> None:
    async with cuttable(tmp_path, postgres) as (store, cutter):
        await add(store, "first")

        async def cut(number: int) -> bool:
            try:
                await add(store, f"k{number}")
            except StoreUnavailable:
                return False
            return True

        async def keep_cutting() -> None:
            while True:
                cutter.at = cutter.at or "after"
                await asyncio.sleep(0)

        cutting = asyncio.create_task(keep_cutting(), name="cutting")
        outcomes = await asyncio.gather(*(cut(number) for number in range(8)))
        cutting.cancel()
        keys = set((await store.changes_since(1)).keys)
        assert {f"k{number}" for number, stored in enumerate(outcomes) if stored} == keys
        assert cutter.cut >= 8


async def test_without_an_answer_the_change_is_in_doubt_and_a_retry_with_the_same_key_finds_it(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_recording, "RESOLVE_SECONDS", 0.3)
    async with cuttable(tmp_path, postgres) as (store, cutter):
        await add(store, "first")
        cutter.at, cutter.down = "after", True
        with pytest.raises(InDoubt, match=r"in_doubt.*Idempotency-Key"):
            await add(store, "second")
        cutter.down = False
        assert (await store.changes_since(1)).keys == ("second",)
        await add(store, "third")
        assert (await store.verify_audit()).problem is None
        assert await store.audit_tail_problem() is None


async def test_another_history_answers_nothing_about_a_commit_in_doubt(tmp_path: Path, postgres: Postgres) -> None:
    async with cuttable(tmp_path, postgres) as (store, cutter):
        await add(store, "first")
        lock = store._recording._look  # type: ignore[attr-defined]

        async def restored(attempt: object) -> object:
            # Meanwhile an operator has restored a dump: the table of changes is another one, without the change.
            postgres.psql(
                "ALTER TABLE changes RENAME TO lost; CREATE TABLE changes (LIKE lost INCLUDING ALL);"
                "ALTER TABLE changes OWNER TO patgate",
                stores.address_of(tmp_path),
            )
            return await lock(attempt)

        store._recording._look = restored  # type: ignore[attr-defined]
        cutter.at = "before"
        with pytest.raises(InDoubt):
            await add(store, "second")


async def test_a_commit_in_doubt_whose_row_was_forgotten_stays_in_doubt(tmp_path: Path, postgres: Postgres) -> None:
    """An accepted history starts over: rows of all earlier changes are gone, also that of one that was committed."""
    async with cuttable(tmp_path, postgres) as (store, cutter):
        await add(store, "first")
        look = store._recording._look  # type: ignore[attr-defined]

        async def started_over(attempt: object) -> object:
            postgres.psql("DELETE FROM changes; UPDATE change_head SET n = 7", stores.address_of(tmp_path))
            return await look(attempt)

        store._recording._look = started_over  # type: ignore[attr-defined]
        cutter.at = "before"
        with pytest.raises(InDoubt):
            await add(store, "second")


async def test_a_change_is_in_doubt_if_its_store_is_refused_when_it_is_committed(tmp_path: Path) -> None:
    async with writers(tmp_path) as (one, two):
        waits, calls = Waits(one), 0

        def fenced(head: Head | None) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise StoreUnavailable("the store has another history")

        one.admit = fenced
        with pytest.raises(InDoubt):
            await add(one, "k")
        assert (await two.epoch(), waits.asked) == (1, [])
        calls = 0
        with pytest.raises(StoreUnavailable, match="another history"):
            async with one.change(ADMIN):
                raise NotFound("what the former store says")
        assert waits.asked == []


@pytest.mark.parametrize("when", [1, 2])
async def test_a_read_of_another_store_is_no_answer_and_reveals_no_number(tmp_path: Path, when: int) -> None:
    """Seen in its snapshot, or because the store was replaced while it was read."""
    async with writers(tmp_path) as (one, two):
        await add(two, "k")
        waits = Waits(one)
        judged: list[tuple[int, bool]] = []

        def judge(number: int, history: str) -> None:
            judged.append((number, history.count("/") == 2))
            if len(judged) == when:
                raise StoreUnavailable("another store")

        one.ask = lambda: judge
        for refusal in (None, NotFound("no")):
            judged.clear()
            with pytest.raises(StoreUnavailable, match="another store"):
                async with one.read():
                    if refusal is not None:
                        raise refusal
            assert judged == [(1, True)] * when
        assert waits.asked == []


async def test_a_deadlock_is_repeated_outside_a_change(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit, writers(tmp_path) as (one, two):
        await kit.basics()
        both = asyncio.Barrier(2)
        attempts = 0

        async def update(store: Store, names: Sequence[str]) -> None:
            first = True

            async def work(connection: AsyncConnection) -> None:
                nonlocal first, attempts
                attempts += 1
                for name in names:
                    await connection.execute(
                        tables.roles.update().where(tables.roles.c.name == name).values(updated_at=5.0)
                    )
                    if first:
                        first = False
                        await both.wait()

            await written(store._database, work)

        async with asyncio.timeout(HANGS_SECONDS):
            await asyncio.gather(update(one, ("admin", "viewer")), update(two, ("viewer", "admin")))
        assert attempts == 3
        assert (await kit.roles.show(ADMIN, "admin")).updated_at == 5.0


async def test_a_batch_in_doubt_is_stored_once_also_while_its_first_attempt_is_being_committed(
    tmp_path: Path, postgres: Postgres
) -> None:
    async with opened(tmp_path) as kit, cuttable(tmp_path, postgres) as (store, cutter):
        await kit.basics()
        token = (await kit.mint(ANN, "t")).view.id
        uses, events = Batches(), Batches()
        cutter.at = "after"
        with pytest.raises(StoreUnavailable):
            await store.add_uses([Use(token_id=token, count=3, at=1.0, ip="::1")], uses.current)
        await store.add_uses([Use(token_id=token, count=3, at=1.0, ip="::1")], uses.current)
        cutter.at = "after"
        with pytest.raises(StoreUnavailable):
            await store.append_requests([request(1), request(2)], events.current)
        await store.append_requests([request(1), request(2)], events.current)
        cutter.at = "before"
        uses.done()
        with pytest.raises(StoreUnavailable):
            await store.add_uses([Use(token_id=token, count=4, at=1.0, ip="::1")], uses.current)
        await store.add_uses([Use(token_id=token, count=4, at=1.0, ip="::1")], uses.current)
        assert (await kit.tokens.show(ADMIN, token)).use_count == 7
        changes = await kit.store.epoch()
        assert (await kit.store.verify_audit()).events == changes + 2
        # The first attempt still has its locks, and commits while the second waits for it.
        async with by_itself(tmp_path) as connection:
            present = {"incarnation": uses.writer, "seq": uses.number + 1, "at": 1.0}
            await connection.execute(
                tables.writers.update().where(tables.writers.c.incarnation == uses.writer).values(present)
            )
            uses.done()
            again = asyncio.create_task(
                store.add_uses([Use(token_id=token, count=5, at=1.0, ip="::1")], uses.current), name="again"
            )
            await asyncio.wait([again], timeout=0.2)
            assert not again.done()
        await again
        assert (await kit.tokens.show(ADMIN, token)).use_count == 7
