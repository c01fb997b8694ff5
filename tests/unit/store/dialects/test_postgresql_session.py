"""The sessions of a node over a real PostgreSQL: each statement, and a connection that is lost or refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

import asyncpg
import pytest

from proxy.core.errors import StoreUnavailable
from proxy.store.dialects.postgresql_session import (
    LONGEST,
    SHORTEST,
    PostgresqlPoll,
    PostgresqlSession,
    statement_seconds,
)
from proxy.store.nodes import history
from proxy.store.nodes.records import Acceptance, AcceptedBy, NodeRow, Remembered
from proxy.store.store import Store
from tests.support.postgres import Postgres
from tests.unit.authority.waiting import until

NODE = "a" * 32
ROW = NodeRow(id=NODE, name="host", version="1", schema="0006", config_hash="c", lease=2.0, started_at=1_700_000_000.5)


@dataclass
class World:
    session: PostgresqlSession
    poll: PostgresqlPoll
    url: str
    postgres: Postgres

    def sql(self, text: str) -> str:
        return self.postgres.psql(text, self.url)


@pytest.fixture
async def world(postgres: Postgres, postgres_url: str) -> AsyncIterator[World]:
    store = await Store.open(postgres_url, key_fingerprint="k")
    await store.close()
    session = PostgresqlSession(postgres_url, lease=2.0, listen=True)
    poll = PostgresqlPoll(postgres_url, lease=2.0)
    yield World(session, poll, postgres_url, postgres)
    await session.close()
    await poll.close()


async def test_a_renewal_needs_a_row_and_returns_the_state(world: World) -> None:
    assert not (await world.session.renew(NODE, None)).renewed
    await world.session.join(ROW, 5)
    world.sql("UPDATE change_head SET n = 7, mark = 'm', lease_bound = 3")
    seen = await world.session.renew(NODE, None)
    assert (seen.renewed, seen.n, seen.mark, seen.bound, seen.acknowledged) == (True, 7, b"m", 3.0, 0)
    assert world.sql("SELECT renewals FROM nodes") == "6"
    assert seen.history == (await world.poll.poll()).history == (await world.session.head()).history
    assert abs(seen.database_time - float(world.sql("SELECT extract(epoch FROM clock_timestamp())"))) < 60


async def test_the_history_is_that_of_the_database_and_of_its_table(world: World) -> None:
    first = (await world.session.head()).history
    system, timeline, database, _ = first.split("/")
    assert system == world.sql("SELECT system_identifier FROM pg_control_system()")
    assert timeline == "00000001"
    assert database == world.sql("SELECT oid FROM pg_database WHERE datname = current_database()")
    # A dump that is restored over the same database makes its tables anew.
    world.sql(
        "CREATE TABLE other (LIKE changes INCLUDING ALL); DROP TABLE changes; ALTER TABLE other RENAME TO changes"
    )
    assert (await world.session.head()).history != first


@pytest.mark.parametrize(
    ("number", "mark", "found"),
    [
        (5, b"five", True),
        (5, b"another", False),
        (4, b"four", True),
        (4, b"another", False),
        (3, b"before 0006", True),
        (2, b"pruned", True),
        (6, b"six", False),
    ],
)
async def test_a_remembered_change_is_looked_for_by_number_and_mark(
    world: World, number: int, mark: bytes, found: bool
) -> None:
    world.sql("INSERT INTO changes (epoch, touched, at, mark) VALUES (3, '[]', 0, NULL), (4, '[]', 0, 'four')")
    world.sql("INSERT INTO changes (epoch, touched, at, mark) VALUES (5, '[]', 0, 'five')")
    world.sql("UPDATE change_head SET n = 5, mark = 'five'")
    remembered = Remembered(n=number, mark=mark, history="", acceptances=frozenset())
    assert (await world.session.renew(NODE, remembered)).remembered is found


async def test_the_accepted_histories_come_with_each_renewal(world: World) -> None:
    accepted = Acceptance(id="1", history="here", by=AcceptedBy.OPERATOR)
    world.sql(f"INSERT INTO meta VALUES ('{history.ACCEPTANCES}', '{history.encode([accepted])}')")
    assert (await world.session.renew(NODE, None)).acceptances == (accepted,)
    world.sql("UPDATE meta SET value = '[1]'")
    with pytest.raises(StoreUnavailable, match="accepted histories"):
        await world.session.renew(NODE, None)


async def test_an_acknowledgement_never_falls(world: World) -> None:
    await world.session.join(ROW, 0)
    for number in (7, 5):
        await world.session.acknowledge(NODE, number)
    assert (await world.session.renew(NODE, None)).acknowledged == 7
    (member,) = (await world.poll.poll()).members
    assert (member.id, member.applied, member.renewals) == (NODE, 7, 1)


async def test_a_renewal_waits_for_the_disk_and_an_acknowledgement_does_not(world: World) -> None:
    world.sql(
        """
        CREATE FUNCTION check_commit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
            IF current_setting(''synchronous_commit'') <> TG_ARGV[0] THEN RAISE EXCEPTION ''wrong''; END IF;
            RETURN NEW;
        END';
        CREATE TRIGGER of_nodes BEFORE INSERT OR UPDATE ON nodes FOR EACH ROW EXECUTE FUNCTION check_commit('on');
        CREATE TRIGGER of_acknowledgements BEFORE INSERT OR UPDATE ON acknowledgements
            FOR EACH ROW EXECUTE FUNCTION check_commit('off');
        """
    )
    world.sql("ALTER DATABASE " + world.url.rpartition("/")[2] + " SET synchronous_commit = local")
    await world.session.join(ROW, 0)
    for _ in range(2):
        await world.session.acknowledge(NODE, 7)
        await world.session.renew(NODE, None)


async def test_a_join_removes_acknowledgements_that_belong_to_no_node(world: World) -> None:
    await world.session.acknowledge("gone", 3)
    await world.session.join(ROW, 0)
    await world.session.acknowledge(NODE, 1)
    await world.session.join(replace(ROW, id="b"), 0)
    assert world.sql("SELECT id FROM acknowledgements") == NODE


async def test_a_row_is_reaped_only_with_the_renewals_that_were_seen(world: World) -> None:
    await world.session.join(ROW, 5)
    await world.session.acknowledge(NODE, 1)
    await world.poll.reap(NODE, 4)
    assert len((await world.poll.poll()).members) == 1
    await world.poll.reap(NODE, 5)
    assert (await world.poll.poll()).members == ()
    assert world.sql("SELECT count(*) FROM acknowledgements") == "0"


async def test_leaving_deletes_the_rows(world: World) -> None:
    await world.session.join(ROW, 5)
    await world.session.acknowledge(NODE, 1)
    await world.session.leave([NODE, "never"])
    assert world.sql("SELECT count(*) FROM nodes") + world.sql("SELECT count(*) FROM acknowledgements") == "00"


async def test_nodes_are_listed_with_their_age(world: World) -> None:
    await world.session.join(ROW, 5)
    world.sql("UPDATE nodes SET renewed_at = renewed_at - 10")
    (listed,) = await world.poll.nodes()
    assert listed.row == ROW
    assert 10 <= listed.age < 60
    assert (listed.applied, listed.protocol) == (0, 1)


async def test_a_notification_and_a_new_connection_are_heard(world: World) -> None:
    heard = asyncio.Event()
    world.session.on_notify = heard.set
    await world.session.head()
    assert heard.is_set(), "what was notified before is unknown"
    heard.clear()
    world.sql("NOTIFY patgate_changes")
    await until(heard.is_set)


async def test_a_terminated_connection_is_an_error_once_and_is_made_again(world: World) -> None:
    await world.session.head()
    world.postgres.terminate_backends(world.url)
    with pytest.raises(StoreUnavailable):
        for _ in range(2):  # the end of the connection may have been noticed already
            await world.session.head()
            world.postgres.terminate_backends(world.url)
    await world.session.head()


async def test_a_statement_that_takes_too_long_ends_the_connection(postgres: Postgres, world: World) -> None:
    session = PostgresqlSession(world.url, lease=0.5, listen=False)
    await session.join(ROW, 0)
    blocker = await asyncpg.connect(world.url)
    try:
        async with blocker.transaction():
            await blocker.execute("UPDATE nodes SET renewals = renewals")
            with pytest.raises(StoreUnavailable, match="in time"):
                await session.renew(NODE, None)
        assert (await session.renew(NODE, None)).renewed
    finally:
        await blocker.close()
        await session.close()


async def test_a_cancelled_caller_leaves_no_half_read_answer(world: World) -> None:
    await world.session.join(ROW, 0)
    for _ in range(5):
        task = asyncio.create_task(world.session.renew(NODE, None))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await world.session.head()).n == 0


async def test_a_warning_of_the_server_is_no_success(world: World) -> None:
    """A COMMIT that no standby has confirmed, because the wait for it was cancelled, comes with a warning only."""
    await world.session.join(ROW, 0)
    world.sql(
        """
        CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN RAISE WARNING ''committed locally''; RETURN NEW; END';
        CREATE TRIGGER warn BEFORE UPDATE ON nodes FOR EACH ROW EXECUTE FUNCTION warn();
        """
    )
    with pytest.raises(StoreUnavailable, match="did not confirm"):
        await world.session.renew(NODE, None)


@pytest.fixture
def unidentified(world: World) -> Iterator[None]:
    world.sql("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    yield
    world.sql("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")


async def test_without_the_right_to_tell_servers_apart_a_node_works(
    world: World, unidentified: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await world.session.head()).history.startswith("/00000001/")
    assert "pg_control_system" in caplog.text


async def test_no_server_and_a_wrong_password_are_said_in_words(postgres: Postgres, world: World) -> None:
    nowhere = PostgresqlSession("postgresql://patgate:x@127.0.0.1:1/none", lease=2.0, listen=False)
    with pytest.raises(StoreUnavailable, match="no server listens there"):
        await nowhere.head()
    wrong = PostgresqlSession(world.url.replace(postgres.owner_password, "wr0ng"), lease=2.0, listen=False)
    with pytest.raises(StoreUnavailable) as caught:
        await wrong.head()
    assert "password" in str(caught.value)
    assert "wr0ng" not in str(caught.value)


async def test_a_server_that_no_longer_waits_for_its_disk_is_refused_by_new_connections() -> None:
    with Postgres() as server:
        url = server.create_database()
        store = await Store.open(url, key_fingerprint="k")
        session = PostgresqlSession(url, lease=2.0, listen=True)
        try:
            await session.renew(NODE, None)
            server.stop("fast")
            server.configure({"fsync": "off"})
            server.start()
            problems: list[str] = []
            while len(problems) < 4 and "fsync = off" not in "".join(problems):
                with pytest.raises(StoreUnavailable) as failed:
                    await session.renew(NODE, None)
                problems.append(str(failed.value))
            assert "fsync = off" in problems[-1]
            with pytest.raises(StoreUnavailable, match="fsync = off"):
                await store.claim(("a",), NODE, 1.0)
        finally:
            await session.close()
            await store.close()


async def test_a_closed_session_does_not_connect_again(world: World) -> None:
    await world.session.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await world.session.head()


def test_the_time_limit_of_a_statement_leaves_time_for_another_one() -> None:
    for lease in (0.1, 1.0, 2.0, 60.0):
        seconds = statement_seconds(lease)
        assert SHORTEST <= seconds <= LONGEST
        assert seconds <= lease / 2 or lease < 2 * SHORTEST
    assert statement_seconds(2.0) == 1.0
