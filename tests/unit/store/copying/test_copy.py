"""Copying an embedded store into a real PostgreSQL: all of it, verified, or nothing at all."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from proxy.core.errors import CopyRefused, StoreUnavailable, WrongKey
from proxy.core.model import Grant
from proxy.services.idempotency import IdempotencyKey
from proxy.services.tokens.issuance import KeyRequest
from proxy.store import tables
from proxy.store.audit.chain import Event
from proxy.store.audit.reports import Report
from proxy.store.audit.request_events import RequestEvent
from proxy.store.copying.columns import COPIED, OF_NODES
from proxy.store.copying.copy import Copied, copy_store
from proxy.store.copying.target import PostgresqlTarget
from proxy.store.dialects import postgresql
from proxy.store.dialects.postgresql import PostgresqlDialect
from proxy.store.tokens.usage import Use
from tests.contract.kit import ADMIN, FINGERPRINT, Kit, opened
from tests.support import stores
from tests.support.dialects import PATIENT
from tests.support.postgres import Postgres
from tests.unit.authority.waiting import until

ANN, BOB = "ann@example.org", "bob@example.org"
HOSTILE = "ﬃ 𝛑 'quote' \"double\" \\back \\N"
"""A name with all that a copy could spoil."""


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "POSTGRESQL", PostgresqlDialect(PATIENT))


@asynccontextmanager
async def at(url: str, directory: Path) -> AsyncIterator[Kit]:
    """The store at ``url``, opened as a node opens it."""
    with stores.elsewhere(lambda _: url):
        async with opened(directory) as kit:
            yield kit


async def fill(kit: Kit) -> None:
    """Something in every table that a copy has to bring."""
    await kit.basics()
    await kit.users.add(ADMIN, BOB, "viewer", name=HOSTILE)
    await kit.invitations.invite(ADMIN, "team", "carl@example.org", "viewer")
    mine = await kit.mint(ANN, "personal", scopes=["things:read"], ip_ranges=["10.0.0.0/8"], description=HOSTILE)
    await kit.mint(ANN, "team's", org="team", expires=3600.0)
    await kit.keys.create(
        ADMIN,
        KeyRequest(name="key", org="team", role="viewer"),
        idempotency_key=IdempotencyKey(value="once", request_hash="0" * 64),
    )
    await kit.keys.create(ADMIN, KeyRequest(name="of several", grants={"team": ["things:read"]}))
    gone = await kit.mint(BOB, "gone")
    await kit.tokens.revoke(ADMIN, gone.view.id)
    assert await kit.store.write_digest(mine.view.id, bytes(range(32)), expected_hash=await hash_of(kit, mine.view.id))
    await kit.store.add_uses([Use(token_id=mine.view.id, count=3, at=0.1 + 0.2, ip="192.0.2.1")])
    report = Report(
        route="/v1/**",
        reason="scope_denies",
        permission="things:write",
        token_id=mine.view.id,
        count=2,
        first_at=1.5,
        last_at=2.5,
        method="GET",
        decision_id="d",
    )
    await kit.store.add_reports([report])
    event = Event(action="request.denied", target_kind="route", target_id="r", outcome="denied", details={"π": [1.5]})
    await kit.store.append_requests([RequestEvent(event=event, prefix=mine.view.prefix, proven=True, at=1.25)])


async def hash_of(kit: Kit, token_id: str) -> str:
    found = await kit.store.token_hash(token_id)
    assert found is not None
    return found


@pytest.fixture
async def filled(tmp_path: Path, patient: None) -> Path:
    """The file of a store with something in every table."""
    async with opened(tmp_path) as kit:
        await fill(kit)
    return tmp_path / "patgate.db"


async def copied(file: Path, url: str, **options: Any) -> Copied:
    return await copy_store(file, PostgresqlTarget(url), key_fingerprint=FINGERPRINT, **options)


def rows_of(file: Path, table: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(f"SELECT * FROM {table}").fetchall()


def tables_in(postgres: Postgres, url: str) -> str:
    """The names of the tables there, on one line."""
    query = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public'"
    return postgres.psql(query, url)


def change(file: Path, statement: str, *values: object) -> None:
    """Change the file as no patgate does."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(statement, values)
        connection.commit()


async def test_every_table_is_copied_or_about_running_nodes(filled: Path) -> None:
    assert {table.name for table in COPIED} | OF_NODES == tables.metadata.tables.keys()
    # The next test compares tables, which proves nothing about empty ones.
    empty = {table.name for table in COPIED if not rows_of(filled, table.name)}
    assert empty <= {"applied_roles"}


async def test_the_copy_has_every_row_bit_for_bit(filled: Path, postgres_url: str, postgres: Postgres) -> None:
    """Compared with what PostgreSQL's own client shows, not with what the copy itself reads back."""
    done = await copied(filled, postgres_url)
    for table in COPIED:
        fields = ", ".join(_shown(column) for column in table.columns)
        texts = postgres.psql(f"SELECT json_build_array({fields}) FROM {table.name}", postgres_url)
        there = sorted((json.loads(line) for line in texts.splitlines()), key=repr)
        with closing(sqlite3.connect(filled)) as connection:
            names = ", ".join(f'"{column.name}"' for column in table.columns)
            read = connection.execute(f"SELECT {names} FROM {table.name}").fetchall()
        here = sorted(([_as_text(value) for value in row] for row in read), key=repr)
        assert there == here, table.name
        assert done.rows[table.name] == len(here)


def _shown(column: sa.Column[Any]) -> str:
    """The column as a text: bytes, and the bytes of floats, in hexadecimal."""
    if isinstance(column.type, sa.LargeBinary):
        return f"encode({column.name}, 'hex')"
    return f"encode(float8send({column.name}), 'hex')" if isinstance(column.type, sa.Double) else f"{column.name}::text"


def _as_text(value: Any) -> str | None:
    if isinstance(value, float):
        value = struct.pack(">d", value)
    return value.hex() if isinstance(value, bytes) else None if value is None else str(value)


async def test_every_token_is_accepted_as_before_and_changes_continue(
    filled: Path, postgres_url: str, tmp_path: Path
) -> None:
    async with opened(tmp_path) as kit:
        async with kit.store.read() as rows:
            prefixes = [row[0] for row in await rows.connection.exec_driver_sql("SELECT prefix FROM tokens")]
        verdicts = {prefix: await kit.resolve(prefix) for prefix in prefixes}
        epoch, head = await kit.store.epoch(), kit.store.audit_head
    assert sum(isinstance(verdict, Grant) for verdict in verdicts.values()) >= 4
    assert not all(isinstance(verdict, Grant) for verdict in verdicts.values())
    done = await copied(filled, postgres_url)
    assert (done.epoch, done.audit.head, done.audit.problem) == (epoch, head, None)
    async with at(postgres_url, tmp_path) as kit:
        assert {prefix: await kit.resolve(prefix) for prefix in prefixes} == verdicts
        assert await kit.store.epoch() == epoch
        checked = await kit.store.verify_audit()
        assert (checked.problem, checked.head) == (None, head)
        made = await kit.mint(ANN, "after")
        assert isinstance(await kit.resolve(made.view.prefix), Grant)
        assert await kit.store.epoch() == epoch + 1
        assert (await kit.store.verify_audit()).problem is None


async def test_the_schema_is_that_of_a_store_that_was_created_there(
    filled: Path, postgres_url: str, postgres: Postgres, tmp_path: Path
) -> None:
    """Indexes, too, which a copy drops and creates again."""
    await copied(filled, postgres_url)
    other = postgres.create_database()
    async with at(other, tmp_path):
        pass
    query = """SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1;
        SELECT table_name, column_name, data_type, collation_name, is_nullable, column_default
        FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2;
        SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace ORDER BY 1"""
    assert postgres.psql(query, postgres_url) == postgres.psql(query, other)
    postgres.drop_database(other)


async def test_a_dry_run_reads_everything_and_writes_nothing(
    filled: Path, postgres_url: str, postgres: Postgres
) -> None:
    before = filled.read_bytes()
    steps: list[tuple[str, int, int]] = []
    done = await copied(filled, postgres_url, dry_run=True, progress=lambda *step: steps.append(step))
    assert tables_in(postgres, postgres_url) == ""
    assert filled.read_bytes() == before
    assert done.rows["tokens"] == 5 and done.audit.problem is None
    assert ("reading tokens", 5, 5) in steps
    assert await copied(filled, postgres_url) == done


async def test_a_store_is_copied_once(filled: Path, postgres_url: str) -> None:
    await copied(filled, postgres_url)
    for dry_run in (False, True):
        with pytest.raises(CopyRefused, match="has this store already"):
            await copied(filled, postgres_url, dry_run=dry_run)


async def test_a_target_with_anything_in_it_is_refused_and_left_alone(
    filled: Path, postgres_url: str, postgres: Postgres
) -> None:
    postgres.psql("CREATE TABLE theirs AS SELECT 1 AS n", postgres_url)
    for dry_run in (False, True):
        with pytest.raises(CopyRefused, match="not empty"):
            await copied(filled, postgres_url, dry_run=dry_run)
    assert tables_in(postgres, postgres_url) == "theirs"


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE meta SET value = 'x' WHERE name = 'store_id'", "another store"),
        ("UPDATE meta SET value = value || 'x'", "another secret key"),
        ("UPDATE alembic_version SET version_num = '0005'", "another schema"),
        ("UPDATE alembic_version SET version_num = '9999'", "another schema"),
    ],
)
async def test_a_target_with_another_store_is_refused_and_left_alone(
    filled: Path, postgres_url: str, postgres: Postgres, statement: str, problem: str
) -> None:
    await copied(filled, postgres_url)
    postgres.psql(statement, postgres_url)
    dump = "SELECT * FROM meta; SELECT * FROM alembic_version; SELECT count(*) FROM tokens"
    before = postgres.psql(dump, postgres_url)
    with pytest.raises(CopyRefused, match=problem):
        await copied(filled, postgres_url)
    assert postgres.psql(dump, postgres_url) == before


async def test_another_secret_key_is_refused(filled: Path, postgres_url: str, postgres: Postgres) -> None:
    with pytest.raises(WrongKey):
        await copy_store(filled, PostgresqlTarget(postgres_url), key_fingerprint="0" * 64)
    assert tables_in(postgres, postgres_url) == ""


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("statement", "value", "place"),
    [
        ("UPDATE users SET name = ? WHERE rowid = 2", f"{SECRET}\0", "users row 2: name contains a NUL character"),
        ("UPDATE tokens SET description = CAST(? AS TEXT) WHERE rowid = 1", SECRET.encode() + b"\xed\xa0\x80",
         "tokens row 1: description is not valid UTF-8, as with a lone surrogate"),
        ("UPDATE users SET role = ? WHERE rowid = 1", SECRET + "x" * 122,
         "users row 1: role has 129 characters, more than the 128 that PostgreSQL takes"),
        ("UPDATE roles SET permissions = ? WHERE rowid = 3", SECRET, "roles row 3: permissions is not valid JSON"),
        ("UPDATE tokens SET expires_at = ? WHERE rowid = 1", SECRET,
         "tokens row 1: expires_at is not a number with a fraction"),
        ("UPDATE tokens SET digest = ? WHERE rowid = 1", SECRET, "tokens row 1: digest is not a blob"),
        ("UPDATE tokens SET notified_days = ? WHERE rowid = 1", 2**31,
         "tokens row 1: notified_days is a number that is too large"),
        ("UPDATE token_usage SET use_count = ? WHERE rowid = 1", SECRET,
         "token_usage row 1: use_count is not a whole number"),
        ("UPDATE tokens SET user_id = ? WHERE rowid = 1", SECRET,
         "tokens row 1: it refers to a row of users that does not exist"),
    ],
    ids=["nul", "surrogate", "long", "json", "float", "blob", "integer", "word", "orphan"],
)  # fmt: skip
async def test_what_postgresql_does_not_take_is_listed_by_its_place_and_never_shown(
    filled: Path, postgres_url: str, postgres: Postgres, statement: str, value: object, place: str
) -> None:
    change(filled, statement, value)
    for dry_run in (True, False):
        with pytest.raises(CopyRefused) as refused:
            await copied(filled, postgres_url, dry_run=dry_run)
        assert place in refused.value.problems
        assert SECRET not in str(refused.value) + "".join(refused.value.problems)
        assert tables_in(postgres, postgres_url) == ""


async def test_the_longest_texts_and_escaped_surrogates_are_taken(
    filled: Path, postgres_url: str, postgres: Postgres
) -> None:
    """A column counts characters, and JSON is stored as it was written."""
    change(filled, "UPDATE users SET role = ? WHERE rowid = 1", "𝛑" * 128)
    change(filled, "UPDATE changes SET touched = ? WHERE rowid = 1", '["\\ud800", "\\u0000",  1]')
    await copied(filled, postgres_url)
    assert postgres.psql("SELECT char_length(role) FROM users WHERE role LIKE '𝛑%'", postgres_url) == "128"
    assert postgres.psql("SELECT touched FROM changes WHERE epoch = 1", postgres_url) == '["\\ud800", "\\u0000",  1]'


async def test_many_misfits_are_counted_and_the_first_hundred_listed(filled: Path, postgres_url: str) -> None:
    with closing(sqlite3.connect(filled)) as connection:
        rows = [(number, "[]", "x") for number in range(1000, 1250)]
        connection.executemany("INSERT INTO changes (epoch, touched, at) VALUES (?, ?, ?)", rows)
        connection.execute("UPDATE change_head SET n = 1249")
        connection.commit()
    with pytest.raises(CopyRefused, match="250 values") as refused:
        await copied(filled, postgres_url, dry_run=True)
    assert len(refused.value.problems) == 100


async def test_a_damaged_audit_log_is_copied_as_it_is_and_reported(filled: Path, postgres_url: str) -> None:
    """Its owner could not mend it in any other way, and the copy must not hide it."""
    change(filled, "UPDATE audit_events SET actor_name = 'mallory' WHERE n = 2")
    assert (await copied(filled, postgres_url, dry_run=True)).audit.problem == "event 2 was altered"
    assert (await copied(filled, postgres_url)).audit.problem == "event 2 was altered"


async def test_a_database_that_alters_a_row_is_noticed(filled: Path, postgres_url: str, postgres: Postgres) -> None:
    """A trigger of the database's superuser here; otherwise a defect of the server, its memory or the network."""
    postgres.psql(
        """
        CREATE FUNCTION alter_one() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF new.name = 'gone' THEN new.status := 'active'; END IF; RETURN new; END $$;
        CREATE FUNCTION add_trigger() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
            IF EXISTS (SELECT FROM pg_class WHERE relname = 'tokens')
               AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'altering') THEN
                CREATE TRIGGER altering BEFORE INSERT ON tokens FOR EACH ROW EXECUTE FUNCTION alter_one();
            END IF; END $$;
        CREATE EVENT TRIGGER watching ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION add_trigger();
        """,
        postgres_url,
    )
    with pytest.raises(CopyRefused, match="table tokens was not read back as it was written"):
        await copied(filled, postgres_url)
    assert tables_in(postgres, postgres_url) == ""


@pytest.mark.parametrize("step", ["copying tokens", "creating indexes", "comparing tokens", "verifying the audit log"])
async def test_an_interrupted_copy_leaves_nothing_and_can_be_repeated(
    filled: Path, postgres_url: str, postgres: Postgres, step: str
) -> None:
    def interrupt(what: str, _done: int, _rows: int) -> None:
        if what == step:
            assert postgres.terminate_backends(postgres_url) == 1

    with pytest.raises(StoreUnavailable):
        await copied(filled, postgres_url, progress=interrupt)
    assert tables_in(postgres, postgres_url) == ""
    assert (await copied(filled, postgres_url)).audit.problem is None


async def test_a_node_that_starts_meanwhile_waits_and_finds_the_whole_store(
    filled: Path, postgres_url: str, tmp_path: Path
) -> None:
    starting: list[asyncio.Task[int]] = []

    async def start() -> int:
        async with at(postgres_url, tmp_path) as kit:
            return await kit.store.epoch()

    def begin(what: str, _done: int, _rows: int) -> None:
        if what == "copying users":
            starting.append(asyncio.create_task(start(), name="a node starts"))
        if what == "verifying the audit log":
            assert not starting[0].done()

    done = await copied(filled, postgres_url, progress=begin)
    assert await starting[0] == done.epoch


@pytest.mark.parametrize("stored", [True, False])
async def test_a_commit_without_an_answer_is_looked_up(filled: Path, stored: bool) -> None:
    """``stored``: the server commits, and its answer is lost. Otherwise it dies before."""
    with Postgres() as server:
        url = server.create_database()
        server.configure({"synchronous_standby_names": "missing"})
        killed: list[asyncio.Task[None]] = []

        async def kill() -> None:
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            await until(lambda: server.psql(waiting) == "1")
            server.terminate_backends(url)

        def interrupt(what: str, _done: int, _rows: int) -> None:
            if what != "verifying the audit log":
                return
            if stored:
                server.reload()
                killed.append(asyncio.create_task(kill(), name="kill"))
            else:
                server.stop("kill")

        if stored:
            done = await copied(filled, url, progress=interrupt)
            await killed[0]
            assert server.psql("SELECT n FROM change_head", url) == str(done.epoch)
        else:
            with pytest.raises(StoreUnavailable):
                await copied(filled, url, progress=interrupt)
            server.start()
            assert tables_in(server, url) == ""
