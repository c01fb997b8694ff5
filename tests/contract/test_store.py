"""The contract of a store: a change is whole, durable, numbered and announced before it is acknowledged."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from proxy.core.errors import Conflict, StoreNewerSchema, StoreUnavailable, WrongKey
from proxy.core.model import UserStatus
from proxy.store import migrate
from proxy.store.change import Change
from proxy.store.records import UserRow
from proxy.store.store import Store
from tests.contract.kit import ADMIN, Kit, by_itself, opened
from tests.support.dialects import ON_SQLITE


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        yield kit


def _user(number: int) -> UserRow:
    email = f"u{number}@example.org"
    return UserRow(
        id=f"usr_{number:012d}",
        email=email,
        email_key=email,
        name="",
        role="viewer",
        status=UserStatus.ACTIVE,
        created_at=float(number),
        updated_at=float(number),
    )


def _touch(change: Change, key: str) -> None:
    change.touched(key)
    change.audit("test.change", target_kind="test", target_id=key)


async def _add(store: Store, number: int) -> None:
    async with store.change(ADMIN) as change:
        await change.users.add(_user(number))
        _touch(change, f"user:{number}")


async def _has(store: Store, number: int) -> bool:
    async with store.read() as rows:
        return await rows.users.by_id(f"usr_{number:012d}") is not None


async def test_a_change_is_numbered_and_announced_before_the_caller_continues(kit: Kit) -> None:
    await _add(kit.store, 1)
    assert kit.announced == [(1, ("user:1",))]
    await _add(kit.store, 2)
    assert kit.announced[1:] == [(2, ("user:2",))]
    assert await kit.intact() == 2


@ON_SQLITE
async def test_an_announced_change_can_be_read(kit: Kit) -> None:
    seen: list[bool] = []

    async def look(epoch: int, _keys: Sequence[str]) -> None:
        seen.append(await _has(kit.store, epoch) and await kit.store.epoch() == epoch)

    kit.store.on_commit = look
    await _add(kit.store, 1)
    assert seen == [True]


async def test_an_exception_undoes_the_whole_change(kit: Kit) -> None:
    with pytest.raises(ValueError, match="no"):
        async with kit.store.change(ADMIN) as change:
            await change.users.add(_user(1))
            _touch(change, "user:1")
            raise ValueError("no")
    assert not await _has(kit.store, 1)
    assert await kit.intact() == 0
    assert kit.announced == []
    await _add(kit.store, 1)


async def test_a_change_without_a_dependency_key_or_an_event_is_a_defect(kit: Kit) -> None:
    with pytest.raises(RuntimeError):
        async with kit.store.change(ADMIN) as change:
            change.touched("user:1")
    with pytest.raises(RuntimeError):
        async with kit.store.change(ADMIN) as change:
            change.audit("test.change", target_kind="test", target_id="1")
    assert await kit.intact() == 0


async def test_an_empty_change_takes_no_number(kit: Kit) -> None:
    async with kit.store.change(ADMIN):
        pass
    assert await kit.store.epoch() == 0
    assert kit.announced == []


async def test_concurrent_changes_get_numbers_without_gaps(kit: Kit) -> None:
    await asyncio.gather(*(_add(kit.store, number) for number in range(1, 31)))
    numbers = [epoch for epoch, _ in kit.announced]
    if kit.store.shared:
        # Several may be announced as one.
        assert (numbers, numbers[-1]) == (sorted(set(numbers)), 30)
    else:
        assert numbers == list(range(1, 31))
    assert {key for _, keys in kit.announced for key in keys} == {f"user:{number}" for number in range(1, 31)}
    assert await kit.intact() == 30


async def test_the_feed_has_each_key_once_in_order(kit: Kit) -> None:
    for key in ("a", "b", "a", "c"):
        async with kit.store.change(ADMIN) as change:
            _touch(change, key)
    feed = await kit.store.changes_since(1)
    assert (feed.epoch, feed.keys, feed.complete) == (4, ("b", "a", "c"), True)
    feed = await kit.store.changes_since(4)
    assert (feed.epoch, feed.keys, feed.complete) == (4, (), True)


async def test_the_feed_says_when_it_is_incomplete(kit: Kit) -> None:
    for key in ("a", "b", "c"):
        async with kit.store.change(ADMIN) as change:
            _touch(change, key)
    assert not (await kit.store.changes_since(0, limit=2)).complete
    assert not (await kit.store.changes_since(4)).complete, "a reader ahead of the store must drop its whole cache"
    async with kit.store.change(ADMIN) as change:
        await change.connection.exec_driver_sql("DELETE FROM changes WHERE epoch < 3")
        _touch(change, "d")
    assert not (await kit.store.changes_since(1)).complete
    assert (await kit.store.changes_since(2)).keys == ("c", "d")


async def test_a_read_sees_one_snapshot(kit: Kit) -> None:
    async with kit.store.read() as rows:
        assert await rows.users.by_id("usr_000000000001") is None
        await _add(kit.store, 1)
        assert await rows.users.by_id("usr_000000000001") is None
    assert await _has(kit.store, 1)


async def test_readers_cannot_write(kit: Kit) -> None:
    with pytest.raises(StoreUnavailable):
        async with kit.store.read() as rows:
            await rows.users.add(_user(1))
    assert not await _has(kit.store, 1)


async def test_more_reads_than_readers_all_complete(kit: Kit) -> None:
    found = await asyncio.gather(*(_has(kit.store, 1) for _ in range(40)))
    assert found == [False] * 40


async def test_a_broken_constraint_is_a_conflict_and_undoes_the_change(kit: Kit) -> None:
    await _add(kit.store, 1)
    with pytest.raises(Conflict) as raised:
        await _add(kit.store, 1)
    assert "example.org" not in str(raised.value)
    assert await kit.intact() == 1


async def test_errors_never_show_the_parameters_of_a_statement(kit: Kit) -> None:
    await _add(kit.store, 1)
    with pytest.raises(Conflict) as raised:
        await _add(kit.store, 1)
    error: BaseException | None = raised.value
    while error is not None:
        assert "u1@example.org" not in str(error)
        error = error.__cause__


@ON_SQLITE
async def test_a_full_disk_refuses_changes_and_heals_without_a_restart(kit: Kit) -> None:
    await _add(kit.store, 1)
    async with kit.store.change(ADMIN) as change:
        pages = (await change.connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
        await change.connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    acknowledged = {1}
    refused = 0
    for number in range(2, 300):
        try:
            await _add(kit.store, number)
            acknowledged.add(number)
        except StoreUnavailable as error:
            assert str(error) == "the store cannot be used now because its disk is full"
            refused += 1
            if refused == 3:
                break
    assert refused == 3
    assert await _has(kit.store, 1), "what is stored can be read while the disk is full"
    assert (await kit.store.resolve(["unknown"])).as_of == len(acknowledged)
    async with kit.store.change(ADMIN) as change:
        await change.connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    await _add(kit.store, 1000)
    acknowledged.add(1000)
    for number in (*range(1, 300), 1000):
        assert await _has(kit.store, number) == (number in acknowledged)
    assert await kit.intact() == len(acknowledged)
    assert [epoch for epoch, _ in kit.announced] == list(range(1, len(acknowledged) + 1))


@ON_SQLITE
async def test_a_lock_held_by_another_process_is_unavailable_then_heals(kit: Kit, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "patgate.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another process holds its lock"):
        await _add(kit.store, 1)
    other.execute("ROLLBACK")
    other.close()
    await _add(kit.store, 1)
    assert await kit.intact() == 1


async def test_a_change_cancelled_in_its_block_leaves_the_writer_usable(kit: Kit) -> None:
    started = asyncio.Event()

    async def stuck() -> None:
        async with kit.store.change(ADMIN) as change:
            await change.users.add(_user(1))
            _touch(change, "user:1")
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stuck(), name="stuck")
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await _has(kit.store, 1)
    await _add(kit.store, 2)
    assert await kit.intact() == 1


async def test_a_change_cancelled_at_any_step_is_whole_or_undone_and_announced(kit: Kit) -> None:
    for steps in range(60):
        task = asyncio.create_task(_add(kit.store, steps), name="cancelled")
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        epoch = await kit.intact()
        stored = await _has(kit.store, steps)
        assert [announced for announced, _ in kit.announced] == list(range(1, epoch + 1))
        assert stored == (f"user:{steps}" in {key for _, keys in kit.announced for key in keys})
    await _add(kit.store, 1000)


@ON_SQLITE
async def test_a_commit_whose_announcement_failed_is_announced_before_the_next(kit: Kit) -> None:
    working = kit.store.on_commit

    async def broken(_epoch: int, _keys: Sequence[str]) -> None:
        raise StoreUnavailable("the page cannot be written")

    kit.store.on_commit = broken
    with pytest.raises(StoreUnavailable):
        await _add(kit.store, 1)
    kit.store.on_commit = working
    await _add(kit.store, 2)
    assert kit.announced == [(1, ("user:1",)), (2, ("user:2",))]


async def test_a_digest_is_written_only_if_its_hash_is_still_stored(kit: Kit) -> None:
    await kit.basics()
    made = await kit.mint("ann@example.org", "t")
    old = await kit.store.token_hash(made.view.id)
    assert old is not None
    await kit.tokens.rotate(ADMIN, made.view.id)
    epoch = await kit.store.epoch()
    before = (await kit.store.resolve([made.view.id])).tokens.get(made.view.id)
    assert not await kit.store.write_digest(made.view.id, b"x" * 32, expected_hash=old)
    assert (await kit.store.resolve([made.view.id])).tokens.get(made.view.id) == before
    new = await kit.store.token_hash(made.view.id)
    assert new is not None and new != old
    assert await kit.store.write_digest(made.view.id, b"y" * 32, expected_hash=new)
    after = (await kit.store.resolve([made.view.id])).tokens.get(made.view.id)
    assert after is not None and after.digest == b"y" * 32
    assert await kit.store.epoch() == epoch
    assert await kit.store.token_hash("nothing") is None


async def test_a_store_reopened_is_the_same_store(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await _add(kit.store, 1)
        identity = kit.store.store_id
    async with opened(tmp_path) as kit:
        assert kit.store.store_id == identity != ""
        assert await _has(kit.store, 1)
        assert await kit.intact() == 1
        await _add(kit.store, 2)
        assert kit.announced == [(2, ("user:2",))]


async def test_another_secret_key_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    with pytest.raises(WrongKey):
        async with opened(tmp_path, fingerprint="f" * 64):
            pass
    async with opened(tmp_path) as kit:
        assert await kit.intact() == 0


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    async with by_itself(tmp_path) as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreNewerSchema):
        async with opened(tmp_path):
            pass
    async with by_itself(tmp_path) as connection:
        assert await migrate.version(connection) == "9999"


@ON_SQLITE
async def test_a_file_that_is_not_a_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "patgate.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreUnavailable, match="it is not a database"):
        async with opened(tmp_path):
            pass


@ON_SQLITE
async def test_a_missing_directory_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        async with opened(tmp_path / "missing"):
            pass


@ON_SQLITE
async def test_only_the_owner_can_read_the_files(kit: Kit, tmp_path: Path) -> None:
    await _add(kit.store, 1)
    files = [path for path in tmp_path.iterdir() if path.name.startswith("patgate.db")]
    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
