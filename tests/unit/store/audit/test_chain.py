"""The chain detects every removed or altered event, wherever it was; retention moves its beginning."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import Conflict
from proxy.core.kinds import Kind
from proxy.services.audit.service import AuditService
from proxy.store import migrate, tables
from proxy.store.audit import chain
from proxy.store.audit.chain import ChainVerification, Event, Mark, Occurred
from proxy.store.audit.queries import LogQuery, SortOrder
from proxy.store.audit.request_events import RequestEvent
from proxy.store.dialects.sqlite import SqliteDatabase
from proxy.store.store import Store
from tests.contract.kit import ADMIN, FINGERPRINT, FORMAT, Kit, opened

START = 1_700_000_000.123456
EVENTS = 12
COLUMNS = [column.name for column in tables.audit_events.columns if column.name != "n"]


async def _fill(kit: Kit, count: int = EVENTS) -> None:
    for number in range(count):
        async with kit.store.change(ADMIN, START + number) as change:
            change.touched("test")
            change.audit(
                "test.change",
                target_kind="test",
                target_id=str(number),
                org_id="org_1" if number % 3 == 0 else "",
                user_id=f"usr_{number % 2}" if number % 4 else "",
                details={"ä": [number, 0.1, None]},
            )


def _file(directory: Path, *statements: str) -> None:
    file = sqlite3.connect(directory / "patgate.db")
    for statement in statements:
        file.execute(statement)
    file.commit()
    file.close()


async def _verified(directory: Path, expected: Mark | None = None) -> ChainVerification:
    """The result of verifying this file, without opening it as a store."""
    database = SqliteDatabase(directory / "patgate.db", readers=1)
    try:
        return await Store(database).verify_audit(expected=expected)
    finally:
        await database.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store with a log."""
    directory = tmp_path_factory.mktemp("written")

    async def write() -> None:
        async with opened(directory) as kit:
            await _fill(kit)

    asyncio.run(write())
    return directory


@pytest.fixture
def tampered(written: Path, tmp_path: Path) -> Callable[..., ChainVerification]:
    """The result of verifying after these statements."""

    def tamper(*statements: str, expected: Mark | None = None) -> ChainVerification:
        shutil.copy(written / "patgate.db", tmp_path / "patgate.db")
        _file(tmp_path, *statements)
        return asyncio.run(_verified(tmp_path, expected))

    return tamper


def _hash_of(written: Path, number: int) -> str:
    with sqlite3.connect(written / "patgate.db") as file:
        ((found,),) = file.execute("SELECT hash FROM audit_events WHERE n = ?", (number,)).fetchall()
    return str(found)


def test_an_untouched_chain_is_valid_and_reports_its_last_event(
    written: Path, tampered: Callable[..., ChainVerification]
) -> None:
    found = tampered()
    end = Mark(n=EVENTS, hash=_hash_of(written, EVENTS))
    assert (found.events, found.problem, found.last, found.head, found.done) == (EVENTS, None, end, end, True)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE audit_events SET target_name = 'x' WHERE n = 3", "event 3 was altered"),
        ("UPDATE audit_events SET at = at + 1 WHERE n = 1", "event 1 was altered"),
        ("UPDATE audit_events SET at = 9e999 WHERE n = 2", "event 2 was altered"),
        ("UPDATE audit_events SET at = 'yesterday' WHERE n = 2", "event 2 was altered"),
        ("UPDATE audit_events SET action = x'00ff' WHERE n = 2", "event 2 was altered"),
        ("UPDATE audit_events SET details = '{}' WHERE n = 12", "event 12 was altered"),
        ("UPDATE audit_events SET details = 'no JSON' WHERE n = 4", "event 4 was altered"),
        ("UPDATE audit_events SET details = replace(details, ':', ' :') WHERE n = 4", "event 4 was altered"),
        ("UPDATE audit_events SET details = '{\"x\": 1, ' || substr(details, 2) WHERE n = 4", "event 4 was altered"),
        ("UPDATE audit_events SET user_id = '' WHERE n = 2", "event 2 was altered"),
        ("UPDATE audit_events SET user_id = 'usr_1' WHERE n = 1", "event 1 was altered"),
        ("UPDATE audit_events SET hash = prev_hash WHERE n = 2", "event 2 was altered"),
        ("DELETE FROM audit_events WHERE n = 1", "event 1 is missing"),
        ("DELETE FROM audit_events WHERE n = 3", "event 3 is missing"),
        ("DELETE FROM audit_events WHERE n = 12", "the log ends at event 11 but its head is event 12"),
        ("DELETE FROM audit_events", "the log ends at event 0 but its head is event 12"),
        ("DELETE FROM audit_chain", "the log ends at event 12 but its head is event 0"),
        ("UPDATE audit_events SET n = 13 WHERE n = 3", "event 3 is missing"),
    ],
)
def test_tampering_is_reported_at_its_event(
    tampered: Callable[..., ChainVerification], statement: str, problem: str
) -> None:
    assert tampered(statement).problem == problem


def test_a_removed_beginning_is_found_although_the_chain_s_row_matches_it(
    written: Path, tampered: Callable[..., ChainVerification]
) -> None:
    base = f"UPDATE audit_chain SET base_n = 4, base_hash = '{_hash_of(written, 4)}'"
    found = tampered("DELETE FROM audit_events WHERE n <= 4", base)
    assert found.problem == "the events up to 4 were removed, but not by retention"
    assert tampered(base).problem == "event 1 is from before the beginning of the log"


def test_a_rewritten_chain_is_found_by_a_head_that_was_kept_elsewhere(
    written: Path, tampered: Callable[..., ChainVerification]
) -> None:
    kept = Mark(n=5, hash=_hash_of(written, 5))
    assert tampered(expected=kept).problem is None
    other = Mark(n=5, hash="0" * 64)
    assert tampered(expected=other).problem == "event 5 is another than the one whose hash was given"
    cut = (
        "DELETE FROM audit_events WHERE n > 4",
        f"UPDATE audit_chain SET head_n=4, head_hash='{_hash_of(written, 4)}'",
    )
    assert tampered(*cut, expected=kept).problem == "the log ends at event 4, before event 5 whose hash was given"


def test_a_log_cut_at_its_end_with_a_head_to_match_is_found_by_the_number_of_the_last_change(
    written: Path, tampered: Callable[..., ChainVerification]
) -> None:
    for n in range(EVENTS):
        cut = (
            f"DELETE FROM audit_events WHERE n > {n}",
            f"UPDATE audit_chain SET head_n={n}, head_hash='{_hash_of(written, n) if n else ''}'",
        )
        assert tampered(*cut).problem == f"the log ends before the event of change {EVENTS}, which the store has made"
    nothing = tampered("DELETE FROM audit_events", "DELETE FROM audit_chain")
    assert nothing.problem == f"the log ends before the event of change {EVENTS}, which the store has made"


async def test_a_cut_of_events_without_a_change_is_found_by_the_process_that_wrote_them(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await _fill(kit, 3)
        await kit.store.append_requests([_asked(number) for number in range(4)])
        head = kit.store.audit_head
        assert head.n == 7
        _cut(tmp_path, 5)
        found = await kit.store.verify_audit()
        assert found.problem == "the log ends at event 5, but this process has written event 7"
        assert await kit.store.audit_tail_problem() == found.problem
        # Whatever is written since, also so much that the number is reached again.
        await kit.store.append_requests([_asked(number) for number in range(4, 9)])
        found = await kit.store.verify_audit()
        assert found.problem == "event 7 is another than the one that this process wrote"


async def test_a_store_cut_together_with_its_log_is_detected_by_the_process_that_made_the_changes(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as kit:
        await _fill(kit, 5)
        _cut(tmp_path, 4)
        _file(tmp_path, "DELETE FROM changes WHERE epoch > 4")
        found = await kit.store.verify_audit()
        assert found.problem == "the log ends at event 4, but this process has written event 5"


async def test_a_log_whose_last_change_retention_removed_is_valid_and_a_cut_one_is_not(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await _fill(kit, 4)
        old = await kit.store.outdated_audit(START + 100, START + 100)
        assert (old.through, old.change) == (4, 4)
        await kit.store.trim_audit(4, 100, _retained(through=4, change=old.change))
        assert (await kit.store.verify_audit()).problem is None
        again = await kit.store.outdated_audit(START + 100, START + 100)
        assert again.change == 4, "what an earlier retention removed counts for the next one"
    _file(tmp_path, "INSERT INTO changes (epoch, touched, at) VALUES (5, '[]', 1)")
    assert (await _verified(tmp_path)).problem == "the log ends before the event of change 5, which the store has made"


async def test_a_log_is_valid_whose_last_change_was_removed_before_retention_recorded_changes(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await _fill(kit, 4)
        await kit.store.trim_audit(4, 100, _retained(through=4))
        assert (await kit.store.verify_audit()).problem is None
        # Nor when a later retention, which cannot know it either, has removed the event of that one.
        kit.clock.now = START + 1000
        log = AuditService(kit.store, kit.clock)
        assert (await log.retain(ADMIN, START + 100)).events == 1
        assert (await kit.store.verify_audit()).problem is None
        assert await kit.store.audit_tail_problem() is None


async def test_the_end_of_the_log_is_checked_without_reading_all_of_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        assert await kit.store.audit_tail_problem() is None
        await _fill(kit, 6)
        assert await kit.store.audit_tail_problem() is None
        _file(tmp_path, "DELETE FROM audit_events WHERE n = 6")
        assert await kit.store.audit_tail_problem() == "the log ends at event 5 but its head is event 6"


async def test_no_text_of_an_event_holds_a_token(tmp_path: Path) -> None:
    token = FORMAT.mint(Kind.PAT).token
    shown = token.rpartition("_")[0]
    async with opened(tmp_path) as kit:
        async with kit.store.change(ADMIN, START) as change:
            change.touched("test")
            change.audit(
                "test.change",
                target_kind="test",
                target_id=token,
                target_name=f"x {token.upper()}",
                details={token: [token.lower(), {"x": f"%5f{token.replace('_', '%5F')}"}], "n": 1},
            )
        async with kit.store.read() as rows:
            (event,) = (await rows.log.page(LogQuery(), SortOrder.NEWEST, None, 1)).entries
        assert (await kit.store.verify_audit()).problem is None
    assert (event.target_id, event.target_name) == (shown, f"x {shown.upper()}")
    assert event.details == {shown: [shown.lower(), {"x": f"_{shown}"}], "n": 1}


def _asked(number: int) -> RequestEvent:
    event = Event(action="request", target_kind="route", target_id="", outcome="refused", decision_id=f"d{number}")
    return RequestEvent(event=event, prefix="", proven=False, at=START)


def _cut(directory: Path, last: int) -> None:
    """Delete the events after ``last``, and make the chain's row match."""
    hash_ = f"(SELECT hash FROM audit_events WHERE n = {last})"
    _file(
        directory,
        f"UPDATE audit_chain SET head_n = {last}, head_hash = {hash_}",
        f"DELETE FROM audit_events WHERE n > {last}",
    )


_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "at": st.floats(min_value=0, max_value=2e9),
    "epoch": st.integers(0, 10**9),
    "details": st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2).map(json.dumps),
}
_TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=70)


@given(data=st.data())
def test_any_row_removed_altered_swapped_or_cut_off_is_found(written: Path, data: st.DataObject) -> None:
    file = sqlite3.connect(":memory:")
    with sqlite3.connect(written / "patgate.db") as source:
        source.backup(file)
    before = file.execute("SELECT * FROM audit_events ORDER BY n").fetchall()
    number = data.draw(st.integers(1, EVENTS), label="number")
    match data.draw(st.sampled_from(("alter", "remove", "swap", "cut")), label="deed"):
        case "alter":
            column = data.draw(st.sampled_from(COLUMNS), label="column")
            value = data.draw(_VALUES.get(column, _TEXTS), label="value")
            file.execute(f"UPDATE audit_events SET {column} = ? WHERE n = ?", (value, number))
        case "remove":
            file.execute("DELETE FROM audit_events WHERE n = ?", (number,))
        case "swap":
            other = data.draw(st.integers(1, EVENTS), label="other")
            file.execute("UPDATE audit_events SET n = -1 WHERE n = ?", (number,))
            file.execute("UPDATE audit_events SET n = ? WHERE n = ?", (number, other))
            file.execute("UPDATE audit_events SET n = ? WHERE n = -1", (other,))
            number = min(number, other)
        case "cut":
            file.execute("DELETE FROM audit_events WHERE n >= ?", (number,))
    same = file.execute("SELECT * FROM audit_events ORDER BY n").fetchall() == before
    found = asyncio.run(_found_in(file))
    assert (found.problem is None) == same
    assert found.events == (EVENTS if same else number - 1)


async def _found_in(file: sqlite3.Connection) -> ChainVerification:
    """The result of verifying a database in memory."""
    from sqlalchemy.ext.asyncio import create_async_engine

    text = "\n".join(file.iterdump())
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        await driver.executescript(text)
        found = await chain.verify(connection, None, None, 1000)
    await engine.dispose()
    return found


async def test_a_verification_continues_in_steps_while_events_are_added_and_retention_overtakes_it(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as kit:
        async with kit.store.change(ADMIN, START) as change:
            change.touched("test")
            for number in range(450):
                change.audit("test.change", target_kind="test", target_id=str(number))
        first = await kit.store.verify_audit(limit=1)
        assert (first.events, first.done, first.problem) == (100, False, None)
        await _fill(kit, 3)
        second = await kit.store.verify_audit(first.last, limit=1)
        assert (second.events, second.done) == (100, False)
        record = _retained(through=420)
        assert await kit.store.trim_audit(420, 1000, record) == 420
        last = await kit.store.verify_audit(first.last)
        assert (last.events, last.done, last.problem) == (450 + 3 + 1 - 420, True, None)
        assert (await kit.store.verify_audit(second.last)).problem is None
        passed = await kit.store.verify_audit(second.last, expected=Mark(n=5, hash="0" * 64))
        assert passed.problem is None, "after the position from which this step continues"
        gone = await kit.store.verify_audit(expected=Mark(n=5, hash="0" * 64))
        assert gone.problem == "event 5, whose hash was given, is not in the log any more"


def _retained(*, through: int, change: int | None = None) -> Occurred:
    details = {"through": through, **({} if change is None else {"change": change})}
    event = Event(action=chain.RETAIN, target_kind="log", target_id=chain.LOG_ID, details=details)
    return Occurred(event=event, actor=("system", "test", "test"), at=START)


async def test_retention_removes_a_few_events_at_a_time_and_never_more_than_it_recorded(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await _fill(kit)
        assert await kit.store.trim_audit(7, 5, _retained(through=7)) == 5
        assert (await kit.store.verify_audit()).problem is None, "half way, too"
        assert await kit.store.trim_audit(7, 5) == 2
        assert await kit.store.trim_audit(7, 5) == 0
        found = await kit.store.verify_audit()
        assert (found.events, found.problem) == (EVENTS - 7 + 1, None)
        assert await kit.store.trim_audit(8, 5) == 1
        assert (await kit.store.verify_audit()).problem == "the events up to 8 were removed, but not by retention"


async def test_retention_does_not_begin_the_log_after_a_missing_event(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await _fill(kit)
        _file(tmp_path, "DELETE FROM audit_events WHERE n = 4")
        with pytest.raises(Conflict, match="event 4 is missing"):
            await kit.store.trim_audit(4, 100, _retained(through=4))
        assert (await kit.store.verify_audit()).problem == "event 4 is missing"


@pytest.mark.parametrize(
    ("times", "before", "through"),
    [
        ([1, 2, 3, 4], 3, 2),
        ([1, 2, 3, 4], 1, 0),
        ([1, 2, 3, 4], 99, 4),
        ([1, 3, 2, 4], 3, 1),  # one that was recorded later than it happened keeps what lies behind an event to keep
        ([1, 10_000, 2, 3, 4], 3, 3),  # a clock that was wrong for a moment does not keep the log for ever
        ([1, 2, 10_000, 3, 4], 3, 2),
        ([10_000, 10_001], 3, 0),
        ([], 3, 0),
    ],
)
async def test_outdated_events_end_before_the_first_event_to_keep(
    tmp_path: Path, times: list[int], before: int, through: int
) -> None:
    async with opened(tmp_path) as kit:
        for at in times:
            async with kit.store.change(ADMIN, float(at)) as change:
                change.touched("test")
                change.audit("test.change", target_kind="test", target_id="1")
        assert (await kit.store.outdated_audit(float(before), 100.0)).through == through


async def test_a_log_from_before_events_had_an_account_stays_valid(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'patgate.db'}")
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(migrate.SCRIPTS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        events = sa.Table("audit_events", sa.MetaData(), autoload_with=connection)
        assert "user_id" not in events.c
        last = ""
        for n in range(1, 6):
            values = {
                **{name: f"{name}-{n}"[:16] for name in COLUMNS if name not in ("user_id", "prev_hash", "hash")},
                **{"n": n, "at": START + n, "epoch": n, "details": {"n": n}},
            }
            hash_ = chain.event_hash(last, values)
            connection.execute(events.insert().values(**values, prev_hash=last, hash=hash_))
            last = hash_
        connection.execute(
            sa.text("INSERT INTO audit_chain (id, base_n, base_hash, head_n, head_hash) VALUES (1, 0, '', 5, :hash)"),
            {"hash": last},
        )
    engine.dispose()
    store = await Store.open(f"sqlite:///{tmp_path / 'patgate.db'}", key_fingerprint=FINGERPRINT)
    try:
        assert ((await store.verify_audit()).events, (await store.verify_audit()).problem) == (5, None)
        async with store.change(ADMIN) as change:
            change.touched("test")
            change.audit("test.change", target_kind="test", target_id="1", user_id="usr_1")
        assert ((await store.verify_audit()).events, (await store.verify_audit()).problem) == (6, None)
    finally:
        await store.close()
    _file(tmp_path, "UPDATE audit_events SET user_id = 'usr_1' WHERE n = 2")
    assert (await _verified(tmp_path)).problem == "event 2 was altered"


async def test_an_event_says_who_did_what_to_what_on_which_log(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await kit.basics()
        team = await kit.orgs.show(ADMIN, "team")
        async with kit.store.read() as rows:
            (event, *_) = (await rows.log.page(LogQuery(org_id=team.id), SortOrder.NEWEST, None, 1)).entries
            found = (await rows.log.page(LogQuery(actor_id=ADMIN.id), SortOrder.NEWEST, None, 10)).entries
    assert (event.level, event.org_id, event.org_name) == ("organisation", team.id, "team")
    assert (event.actor_kind, event.actor_id, event.actor_name) == (ADMIN.kind.value, ADMIN.id, ADMIN.name)
    assert event.epoch == event.n == len(found)
