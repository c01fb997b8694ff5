"""PostgreSQL holds the same values as SQLite bit for bit, and a commit is acknowledged only if it is certain."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.errors import Conflict, Invalid, OutcomeUnknown, StoreUnavailable
from proxy.store import migrate, tables
from proxy.store.dialects.postgresql import POSTGRESQL, PostgresqlDatabase
from proxy.store.dialects.postgresql_driver import PostgresqlLimits
from proxy.store.engine import Prepared
from proxy.store.store import Store
from tests.support.dialects import PATIENT, migrated_on
from tests.support.postgres import Postgres, name_of
from tests.support.process import HANGS_SECONDS, POLL_SECONDS

_META = tables.meta
_VALUE = Prepared(sa.select(_META.c.value).where(_META.c.name == sa.bindparam("name")))


@asynccontextmanager
async def opened(url: str, limits: PostgresqlLimits = PATIENT, **options: int) -> AsyncIterator[PostgresqlDatabase]:
    database = PostgresqlDatabase(url, limits=limits, **options)  # type: ignore[arg-type]
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
def url(postgres: Postgres) -> Iterator[str]:
    """The address of a migrated database."""
    made = migrated_on(postgres)
    yield made
    postgres.drop_database(made)


@pytest.fixture
async def database(url: str) -> AsyncIterator[PostgresqlDatabase]:
    async with opened(url) as made:
        yield made


async def put(database: PostgresqlDatabase, name: str, value: str = "v") -> None:
    async with database.write() as connection:
        await connection.execute(_META.insert().values(name=name, value=value))
        await database.commit(connection)


async def has(database: PostgresqlDatabase, name: str) -> bool:
    return await database.rows(_VALUE, {"name": name}) != []


async def one(connection: AsyncConnection, sql: str) -> object:
    return (await connection.exec_driver_sql(sql)).scalar_one()


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(HANGS_SECONDS):
        while not condition():  # noqa: ASYNC110 - the condition is another process's
            await asyncio.sleep(POLL_SECONDS)
    assert condition(), what


async def test_every_session_states_what_it_relies_on(postgres: Postgres, url: str) -> None:
    name = name_of(url)
    for setting in (
        "synchronous_commit = off",
        "idle_in_transaction_session_timeout = 0",
        "lock_timeout = 0",
        "default_transaction_isolation = 'serializable'",
    ):
        postgres.psql(f"ALTER DATABASE {name} SET {setting}")
    async with opened(url, PostgresqlLimits()) as database:
        async with database.write() as connection:
            found = {
                setting: await one(connection, f"SHOW {setting}")
                for setting in (
                    "synchronous_commit",
                    "idle_in_transaction_session_timeout",
                    "lock_timeout",
                    "statement_timeout",
                    "tcp_user_timeout",
                    "transaction_isolation",
                    "transaction_read_only",
                    "application_name",
                )
            }
        assert found == {
            "synchronous_commit": "on",
            "idle_in_transaction_session_timeout": "1s",
            "lock_timeout": "5s",
            "statement_timeout": "15s",
            "tcp_user_timeout": "4000",
            "transaction_isolation": "read committed",
            "transaction_read_only": "off",
            "application_name": "patgate",
        }
        async with database.snapshot() as connection:
            assert await one(connection, "SHOW transaction_isolation") == "repeatable read"
            assert await one(connection, "SHOW transaction_read_only") == "on"
            assert await one(connection, "SHOW idle_in_transaction_session_timeout") == "15s"


async def test_a_transaction_that_stands_still_gives_up_its_locks_and_stores_nothing(url: str) -> None:
    async with opened(url, replace(PATIENT, idle=0.2)) as database:
        await put(database, "a")
        with pytest.raises(StoreUnavailable):
            async with database.write() as connection:
                await connection.execute(_META.update().values(value="frozen"))
                async with opened(url) as other, other.write() as waiting:
                    # It gets the lock although the first one never ends its transaction.
                    await waiting.execute(_META.update().values(value="other"))
                    await other.commit(waiting)
                await database.commit(connection)
        assert await database.rows(_VALUE, {"name": "a"}) == [("other",)]


async def test_a_lock_is_waited_for_and_then_given_up(url: str) -> None:
    async with opened(url, replace(PATIENT, lock=0.2)) as database:
        await put(database, "a")
        async with opened(url) as other, other.write() as holder:
            await holder.execute(_META.update().values(value="held"))
            with pytest.raises(StoreUnavailable, match=r"because another transaction holds a lock$"):
                async with database.write() as connection:
                    await connection.execute(_META.update().values(value="waits"))
            await other.commit(holder)
        assert await database.rows(_VALUE, {"name": "a"}) == [("held",)]


async def test_a_statement_that_takes_too_long_is_ended_by_the_server(url: str) -> None:
    async with opened(url, replace(PATIENT, statement=0.2)) as database:
        with pytest.raises(StoreUnavailable, match=r"because a statement took too long$"):
            async with database.snapshot() as connection:
                await connection.exec_driver_sql("SELECT pg_sleep(600)")
        await put(database, "a")


async def test_a_commit_after_a_failed_statement_is_no_success(database: PostgresqlDatabase) -> None:
    async with database.write() as connection:
        await connection.execute(_META.insert().values(name="a", value="v"))
        with pytest.raises(sa.exc.DBAPIError):
            await connection.exec_driver_sql("SELECT 1 / 0")
        with pytest.raises(StoreUnavailable, match="because an earlier statement of the change failed"):
            await database.commit(connection)
    assert not await has(database, "a")
    await put(database, "b")


async def test_a_constraint_that_is_checked_at_the_commit_is_a_conflict(
    database: PostgresqlDatabase, postgres: Postgres, url: str
) -> None:
    postgres.psql("CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED); GRANT ALL ON late TO patgate", url)
    with pytest.raises(Conflict):
        async with database.write() as connection:
            await connection.execute(_META.insert().values(name="a", value="v"))
            await connection.exec_driver_sql("INSERT INTO late VALUES (1), (1)")
            await database.commit(connection)
    assert not await has(database, "a")
    await put(database, "b")


async def test_a_commit_runs_to_its_end_although_its_caller_is_cancelled(database: PostgresqlDatabase) -> None:
    started = asyncio.Event()

    async def work() -> None:
        async with database.write() as connection:
            await connection.execute(_META.insert().values(name="a", value="v"))
            started.set()
            await database.commit(connection)

    task = asyncio.create_task(work(), name="cancelled")
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    stored = await has(database, "a")
    assert stored == (not task.cancelled()) or stored
    await put(database, "b")


@pytest.fixture(scope="module")
def lonely() -> Iterator[Postgres]:
    """A server that waits with every commit for a standby that does not exist, once ``waiting`` says so."""
    with Postgres() as server:
        yield server


@pytest.fixture
async def waiting(lonely: Postgres) -> AsyncIterator[PostgresqlDatabase]:
    address = migrated_on(lonely)
    async with opened(address, replace(PATIENT, commit=600.0)) as database:
        await put(database, "before")
        lonely.psql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'; SELECT pg_reload_conf()")
        await until(lambda: _settled(lonely, "nobody"), "the setting is in force")
        yield database
        lonely.psql("ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()")
        await until(lambda: _settled(lonely, ""), "the setting is in force")


def _settled(server: Postgres, value: str) -> bool:
    return server.psql("SHOW synchronous_standby_names") == value


_STUCK = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.mark.parametrize("function", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_a_commit_that_a_standby_did_not_confirm_is_unknown(
    lonely: Postgres, waiting: PostgresqlDatabase, function: str
) -> None:
    task = asyncio.create_task(put(waiting, "doubtful"), name="commit")
    await until(lambda: lonely.psql(f"SELECT count(*) {_STUCK}") == "1", "the commit waits for the standby")
    assert not task.done()
    lonely.psql(f"SELECT {function}(pid) {_STUCK}")
    with pytest.raises(OutcomeUnknown):
        await task
    assert await has(waiting, "doubtful"), "it is stored here, and a standby may lack it"


async def test_at_the_deadline_of_a_commit_the_socket_is_closed_and_the_outcome_is_unknown(lonely: Postgres) -> None:
    address = migrated_on(lonely)
    async with opened(address, replace(PATIENT, commit=0.3)) as database:
        lonely.psql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'; SELECT pg_reload_conf()")
        await until(lambda: _settled(lonely, "nobody"), "the setting is in force")
        with pytest.raises(OutcomeUnknown, match="did not confirm the change"):
            await put(database, "doubtful")
        # Nobody has cancelled the wait, which would have reported success.
        assert lonely.psql(f"SELECT count(*) {_STUCK}") == "1"
        lonely.psql("ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()")
        await until(lambda: lonely.psql(f"SELECT count(*) {_STUCK}") == "0", "the standby is waited for no more")
        assert await has(database, "doubtful")
        await put(database, "after")


async def test_a_restart_of_the_server_is_noticed_by_no_later_call(lonely: Postgres) -> None:
    address = migrated_on(lonely)
    async with opened(address) as database:
        await asyncio.gather(*(put(database, f"{n}") for n in range(8)), *(has(database, "0") for _ in range(8)))
        for mode in ("fast", "immediate", "kill"):
            await asyncio.to_thread(lonely.restart, mode)
            found = await asyncio.gather(*(has(database, f"{n}") for n in range(8)))
            assert all(found), "what was acknowledged is there after a crash"
            await put(database, mode)
        async with database.write() as connection:
            await connection.execute(_META.insert().values(name="lost", value="v"))
            await asyncio.to_thread(lonely.restart, "immediate")
            with pytest.raises(StoreUnavailable) as refused:
                await database.commit(connection)
        assert not isinstance(refused.value, OutcomeUnknown), "COMMIT was not sent"
        assert not await has(database, "lost")


async def test_while_the_server_is_away_calls_fail_at_once_and_afterwards_they_work(lonely: Postgres) -> None:
    address = migrated_on(lonely)
    async with opened(address) as database:
        await put(database, "a")
        await asyncio.to_thread(lonely.stop)
        for work in (has(database, "a"), put(database, "b")):
            with pytest.raises(StoreUnavailable, match=r"because (no server listens there|the connection was lost)"):
                await work
        await asyncio.to_thread(lonely.start)
        assert await has(database, "a")
        await put(database, "b")


async def test_a_read_survives_the_end_of_its_connection(
    database: PostgresqlDatabase, postgres: Postgres, url: str
) -> None:
    await put(database, "a")
    for _ in range(20):
        reads = [asyncio.create_task(has(database, "a"), name="read") for _ in range(12)]
        await asyncio.to_thread(postgres.terminate_backends, url)
        assert all(await asyncio.gather(*reads))


async def test_texts_are_compared_by_bytes_and_not_by_a_language(database: PostgresqlDatabase) -> None:
    names = ["a", "B", "b", "A", "_", "-", "ä", "z", "Z", "ß", "ss", "a b", "a-b", "ab", "A.", "A/", "A0", "\U0001f600"]
    for name in names:
        await put(database, name)
    async with database.snapshot() as connection:
        found = list((await connection.execute(sa.select(_META.c.name).order_by(_META.c.name))).scalars())
        assert found == sorted(names, key=str.encode)
        for bound in names:
            above = sa.select(_META.c.name).where(_META.c.name > bound).order_by(_META.c.name)
            assert list((await connection.execute(above)).scalars()) == [
                n for n in found if n.encode() > bound.encode()
            ]
        # Also where no column takes part.
        assert (await connection.execute(sa.select(sa.literal("B") < sa.literal("a")))).scalar_one() is True
        assert await one(connection, "SELECT 'B' < 'a'") is False, "the database's own collation is another one"


def test_every_column_of_text_has_the_collation_of_bytes(postgres: Postgres, url: str) -> None:
    query = (
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
        "AND data_type IN ('text', 'character varying') AND collation_name IS DISTINCT FROM 'C'"
    )
    assert postgres.psql(query, url) == ""


async def test_numbers_and_json_come_back_bit_for_bit(
    database: PostgresqlDatabase, postgres: Postgres, url: str
) -> None:
    rng = random.Random(11)
    floats = [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1700000000.123456, math.nextafter(1.0, 2.0)]
    floats += [rng.uniform(0, 2e9) for _ in range(200)]
    values = [
        {"z": 1, "a": [1.5, None, True], "é\0\ud800": "\0\ud800\U0001f600", "n": 2**70, "f": 1e300},
        [],
        {},
        "x",
        0,
    ]
    table = tables.changes
    async with database.write() as connection:
        for number, at in enumerate(floats):
            touched = values[number % len(values)]
            await connection.execute(
                table.insert().values(epoch=2**62 + number, touched=touched, at=at, mark=b"\0\xff")
            )
        await database.commit(connection)
    rows = await database.rows(
        Prepared(sa.select(table.c.epoch, table.c.at, table.c.touched, table.c.mark).order_by(table.c.epoch)), {}
    )
    assert [(math.copysign(1, at), at) for _, at, _, _ in rows] == [(math.copysign(1, at), at) for at in floats]
    assert [touched for _, _, touched, _ in rows] == [values[n % len(values)] for n in range(len(floats))]
    assert [epoch for epoch, *_ in rows] == [2**62 + n for n in range(len(floats))]
    assert {mark for *_, mark in rows} == {b"\0\xff"}
    async with database.snapshot() as connection:
        query = sa.select(sa.type_coerce(table.c.touched, sa.Text)).order_by(table.c.epoch).limit(len(values))
        assert list((await connection.execute(query)).scalars()) == [json.dumps(value) for value in values]


@pytest.mark.parametrize("value", ["nul\0hunter2", "surrogate\udc00hunter2", "hunter2" + "x" * 64])
async def test_a_text_that_cannot_be_stored_is_invalid_and_not_repeated(
    database: PostgresqlDatabase, value: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await put(database, value)
    error: BaseException | None = refused.value
    assert str(error).startswith(("text: holds a character", "text: is longer"))
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__
    if len(value) <= 64:
        with pytest.raises(Invalid):
            await has(database, value)
    await put(database, "a")


async def test_a_value_that_breaks_a_constraint_is_not_repeated(database: PostgresqlDatabase) -> None:
    await put(database, "hunter2")
    with pytest.raises(Conflict) as refused:
        await put(database, "hunter2")
    error: BaseException | None = refused.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__


async def test_of_nodes_that_start_together_one_makes_the_store(postgres_url: str) -> None:
    opening = (Store.open(postgres_url, key_fingerprint="f") for _ in range(6))
    stores = await asyncio.gather(*opening)
    try:
        assert len({store.store_id for store in stores}) == 1
    finally:
        for store in stores:
            await store.close()


async def test_of_nodes_that_start_together_one_migrates_an_older_store(postgres: Postgres, url: str) -> None:
    older = (
        "DROP TABLE change_head, nodes, acknowledgements, writers, applied_roles, chores; "
        "ALTER TABLE changes DROP COLUMN mark; UPDATE alembic_version SET version_num = '0005'"
    )
    postgres.psql(older, url)
    stores = await asyncio.gather(*(Store.open(url, key_fingerprint="f") for _ in range(6)))
    for store in stores:
        await store.close()
    assert postgres.psql("SELECT version_num FROM alembic_version", url) == migrate.REVISIONS[-1]
    assert postgres.psql("SELECT count(*) FROM change_head", url) == "1"


async def test_a_store_opens_while_another_node_writes(url: str) -> None:
    first = await Store.open(url, key_fingerprint="f")
    async with first._database.write() as connection:
        await connection.execute(tables.change_head.update().values(mark=b"x" * 16))
        second = await Store.open(url, key_fingerprint="f")
        await second.close()
    await first.close()


@pytest.mark.parametrize(
    ("create", "problem"),
    [
        ("ENCODING 'LATIN1' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'", "must have the encoding UTF8"),
        ("ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'", "must have the encoding UTF8"),
    ],
)
async def test_a_database_of_another_encoding_is_refused(postgres: Postgres, create: str, problem: str) -> None:
    name = postgres.new_name()
    postgres.psql(f"CREATE DATABASE {name} OWNER patgate TEMPLATE template0 {create}")
    with pytest.raises(StoreUnavailable, match=problem):
        await Store.open(postgres.url(name), key_fingerprint="f")
    postgres.drop_database(name)


async def test_a_server_that_does_not_wait_for_its_disk_is_refused() -> None:
    with Postgres({"fsync": "off"}) as server:
        with pytest.raises(StoreUnavailable, match="the server runs with fsync = off"):
            await Store.open(server.create_database(), key_fingerprint="f")
        async with opened(server.create_database(), replace(PATIENT, durable=False)):
            pass


async def test_a_database_that_can_only_be_read_is_refused(postgres: Postgres, postgres_url: str) -> None:
    postgres.psql(f"ALTER DATABASE {name_of(postgres_url)} SET default_transaction_read_only = on")
    with pytest.raises(StoreUnavailable, match="because it can only be read, as a standby"):
        await Store.open(postgres_url, key_fingerprint="f")


async def test_a_reader_cannot_write(database: PostgresqlDatabase) -> None:
    with pytest.raises(StoreUnavailable, match="because it can only be read"):
        async with database.snapshot() as connection:
            await connection.execute(_META.insert().values(name="a", value="v"))
    assert not await has(database, "a")


async def test_more_callers_than_connections_all_complete(url: str) -> None:
    async with opened(url, readers=2, writers=2) as database:
        await asyncio.gather(*(put(database, f"{n}") for n in range(40)))
        assert all(await asyncio.gather(*(has(database, f"{n}") for n in range(40))))


async def test_an_upsert_updates_the_row_that_exists(database: PostgresqlDatabase) -> None:
    query = POSTGRESQL.upsert(
        _META, ("name", "value"), None, keys=(_META.c.name,), update=lambda new: {"value": _META.c.value + new["value"]}
    )
    for value in ("a", "b"):
        async with database.write() as connection:
            await connection.execute(query, {"name": "n", "value": value})
            await database.commit(connection)
    assert await database.rows(_VALUE, {"name": "n"}) == [("ab",)]
