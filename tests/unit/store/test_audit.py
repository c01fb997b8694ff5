"""The chain shows every event that was removed or altered, wherever it stood."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from proxy.store.log import EventQuery, Order
from tests.contract.kit import ADMIN, opened


async def _fill(directory: Path) -> None:
    async with opened(directory) as kit:
        for number in range(5):
            async with kit.store.change(ADMIN, 1_700_000_000.123456 + number) as change:
                change.touched("test")
                change.audit(
                    "test.change", target_kind="test", target_id=str(number), details={"ä": [number, 0.1, None]}
                )


async def _problem(directory: Path) -> str | None:
    async with opened(directory) as kit:
        return (await kit.store.verify_audit()).problem


def _tamper(directory: Path, statement: str) -> None:
    file = sqlite3.connect(directory / "patgate.db")
    file.execute(statement)
    file.commit()
    file.close()


async def test_an_untouched_chain_holds(tmp_path: Path) -> None:
    await _fill(tmp_path)
    assert await _problem(tmp_path) is None


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE audit_events SET target_name = 'x' WHERE n = 3", "event 3 was altered"),
        ("UPDATE audit_events SET at = at + 1 WHERE n = 1", "event 1 was altered"),
        ("UPDATE audit_events SET details = '{}' WHERE n = 5", "event 5 was altered"),
        ("UPDATE audit_events SET hash = prev_hash WHERE n = 2", "event 2 was altered"),
        ("DELETE FROM audit_events WHERE n = 1", "event 1 is missing"),
        ("DELETE FROM audit_events WHERE n = 3", "event 3 is missing"),
        ("DELETE FROM audit_events WHERE n = 5", "the log ends at event 4 but its head is event 5"),
        ("DELETE FROM audit_events", "the log ends at event 0 but its head is event 5"),
    ],
)
async def test_tampering_is_found_where_it_was_done(tmp_path: Path, statement: str, problem: str) -> None:
    await _fill(tmp_path)
    _tamper(tmp_path, statement)
    assert await _problem(tmp_path) == problem


async def test_an_event_says_who_did_what_to_what_on_which_log(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await kit.basics()
        team = await kit.orgs.show(ADMIN, "team")
        made = await kit.mint("ann@example.org", "ci", org="team")
        async with kit.store.read() as rows:
            (event,) = (await rows.log.page(EventQuery(org_id=team.id), Order.NEWEST, None, 1)).entries
            assert len((await rows.log.page(EventQuery(actor_id=ADMIN.id), Order.NEWEST, None, 10)).entries) == 5
    assert (event.action, event.level, event.org_id) == ("account.pat.mint", "organisation", team.id)
    assert (event.actor_kind, event.actor_id, event.actor_name) == (ADMIN.kind.value, ADMIN.id, ADMIN.name)
    assert (event.target_kind, event.target_id, event.target_name) == ("token", made.view.id, "ci")
    assert event.epoch == event.n == 5
