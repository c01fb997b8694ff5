"""No query of the store scans a growing table, with the planner's statistics or without.

Every method of every repository runs at least once (a new one fails here until it does), on a store that is filled as
``python -m bench store`` fills one. EXPLAIN QUERY PLAN then checks each statement.
"""

from __future__ import annotations

import inspect
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from bench.datasets.aged_store import Filled, email, fill
from bench.datasets.audit_log import Logged, fill_log
from proxy.core.kinds import Kind, Reach
from proxy.core.model import TokenStatus, UserStatus
from proxy.store import feed
from proxy.store.audit import chain, request_events
from proxy.store.audit.chain import Event, Mark, Occurred
from proxy.store.audit.queries import LogPosition, LogQuery, SortOrder
from proxy.store.audit.reports import Report
from proxy.store.audit.request_events import RequestEvent
from proxy.store.change import Rows
from proxy.store.records import Cursor, InvitationRow, MemberRow, OrgRow, RoleRow, TokenRow, UserRow
from proxy.store.tokens import usage
from proxy.store.tokens.expiring import NoticeKey
from proxy.store.tokens.queries import TokenListQuery, Within
from proxy.store.tokens.usage import Use
from proxy.store.upkeep import batches, chores
from proxy.store.upkeep.batches import Batch

NOW: Final = 1_790_000_000.0
ROW: Final = "new000000000"
GROWS: Final = frozenset(
    {"tokens", "token_usage", "token_orgs", "users", "members", "invitations", "changes", "audit_events", "idempotency"}
)
#: Reads all tokens by its purpose, in an index alone.
SCANS_BY_PURPOSE: Final = frozenset({"active_tokens.owners_above"})


@dataclass
class Ran:
    """A statement, and the method that ran it."""

    by: str
    statement: str
    parameters: Any


@dataclass
class Recorder:
    """Runs methods and records their names and their statements."""

    filled: Filled
    logged: Logged
    ran: list[Ran] = field(default_factory=list)
    called: set[str] = field(default_factory=set)
    by: str = ""

    @asynccontextmanager
    async def rows(self) -> AsyncIterator[tuple[Any, AsyncConnection]]:
        engine = create_async_engine(f"sqlite+aiosqlite:///{self.filled.database}")
        sa.event.listen(engine.sync_engine, "before_cursor_execute", self._executed)
        try:
            async with engine.connect() as connection:
                yield _Spied(Rows(connection), self, ""), connection
                await connection.rollback()
        finally:
            await engine.dispose()

    def _executed(self, _c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        self.ran.append(Ran(self.by, statement, parameters[0] if many else parameters))

    async def run(self, name: str, work: Coroutine[Any, Any, Any]) -> Any:
        self.by = name
        self.called.add(name)
        return await work


class _Spied:
    """A repository, or the object that holds them all, whose calls the recorder runs and records by name."""

    def __init__(self, real: object, recorder: Recorder, name: str) -> None:
        self._real, self._recorder, self._name = real, recorder, name

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        full = f"{self._name}.{name}".lstrip(".")
        if not inspect.iscoroutinefunction(found):
            return _Spied(found, self._recorder, full)
        return lambda *args, **kwargs: self._recorder.run(full, found(*args, **kwargs))


def _public() -> set[str]:
    """The names of all methods of all repositories."""
    rows = Rows(None)  # type: ignore[arg-type]
    found = {"grant_rows"}
    for name, repository in vars(rows).items():
        for method, function in vars(type(repository)).items():
            if inspect.iscoroutinefunction(function) and not method.startswith("_"):
                found.add(f"{name}.{method}")
    return found


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    directory = tmp_path_factory.mktemp("plans")
    filled = fill(directory / "data", tokens=2000, seed=1, now=NOW)
    return Recorder(filled=filled, logged=fill_log(filled, events=3000, seed=2))


def _token(user_id: str | None, org_id: str | None) -> TokenRow:
    return TokenRow(
        id=ROW,
        prefix=f"acme_pat_{ROW}",
        kind=Kind.PAT,
        reach=Reach.PERSONAL,
        name="new",
        description="",
        user_id=user_id,
        org_id=org_id,
        role=None,
        scopes=None,
        status=TokenStatus.ACTIVE,
        hash="h",
        digest=None,
        created_by_kind="system",
        created_by="test",
        created_at=NOW,
        updated_at=NOW,
        expires_at=NOW + 1,
    )


async def _tokens(rows: Any, recorder: Recorder) -> None:
    filled = recorder.filled
    user, org, token = filled.users[0], filled.org_ids[0], filled.tokens[0].id
    await rows.tokens.add(_token(user, None))
    await rows.tokens.get(token)
    await rows.tokens.hash(token)
    await rows.tokens.count_active(user, NOW)
    await rows.tokens.count_active(user, NOW, org)
    await rows.tokens.replace_secret(token, hash="h", digest=b"d", now=NOW)
    await rows.tokens.regenerate(token, hash="h", digest=b"d", expires_at=NOW + 1, now=NOW)
    await rows.tokens.set_scopes(token, ["*:read"], NOW)
    await rows.tokens.set_ip_ranges(token, ["10.0.0.0/8"], NOW)
    await rows.tokens.describe(token, name="n", description="", now=NOW)
    await rows.tokens.made_by(token, NOW, after=None, limit=10)
    await rows.tokens.descends(token, ROW)
    await rows.tokens.revoke(token, NOW)
    await rows.tokens.write_digest(token, b"d", "h")
    await rows.tokens.count_made_by(token, NOW)
    await rows.tokens.revoke_many([token], NOW)
    await rows.tokens.file_owner_removed(filled.users[1])
    await rows.tokens.file_expired(NOW, 10)
    await rows.tokens.delete(ROW)
    await rows.tokens.delete_many([_token(user, None)])
    await rows.token_orgs.add(token, org, ["things:read"], NOW)
    await rows.token_orgs.of([token, ROW])
    await rows.token_orgs.set(token, org, ["things:*"])
    await rows.token_orgs.seats(org, NOW)
    await rows.token_orgs.remove(token, org)
    await rows.active_tokens.page(after=None, limit=10, now=NOW)
    await rows.active_tokens.page(after=Cursor(created_at=NOW, id=""), limit=10, now=NOW, org_id=org)
    await rows.active_tokens.by_ids([token, ROW], NOW)
    await rows.active_tokens.expire([token, ROW], NOW)
    await rows.active_tokens.owners_above(1, NOW, 10)
    await rows.expiring_tokens.due(14, begin=NOW, end=NOW + 1, limit=10)
    await rows.expiring_tokens.count(begin=NOW, end=NOW + 1)
    notice = NoticeKey(token_id=token, expires_at=NOW, days=1)
    await rows.expiring_tokens.mark([notice])
    await rows.expiring_tokens.unsent([notice])
    for size in (1, 2, 8):
        await rows.grant_rows([token, ROW][:size] * (size // 2 or 1))
    await rows.idempotency.add("c", "k", request_hash="r", target_id="t", at=NOW)
    await rows.idempotency.get("c", "k")
    await rows.idempotency.forget(NOW)


async def _pages(rows: Any, recorder: Recorder) -> None:
    user, org, token = recorder.filled.users[0], recorder.filled.org_ids[0], recorder.filled.tokens[0].id
    withins = (
        (Within(),),
        (Within(user_id=user),),
        (Within(org_id=org),),
        (Within(user_id=user, org_id=org, reach=Reach.ORG),),
        (Within(lineage=token),),
        (Within(user_id=user), Within(org_id=org)),
    )
    cursors = (None, Cursor(created_at=NOW, id=token))
    for within, kind, status, by, after in product(
        withins, (None, *Kind), (None, *TokenStatus), (None, NOW + 1), cursors
    ):
        query = TokenListQuery(within=within, kind=kind, status=status, expires_by=by)
        await rows.tokens.page(query, after=after, limit=10, now=NOW)
        unused = replace(query, unused_since=NOW - 1, but=token)
        await rows.tokens.page(unused, after=after, limit=10, now=NOW)
        if after is not None:
            await rows.tokens.count_behind(query, after, 10, NOW)
            await rows.tokens.count_behind(unused, after, 10, NOW)


async def _people(rows: Any, recorder: Recorder) -> None:
    filled = recorder.filled
    user, org, after = filled.users[1], filled.org_ids[0], Cursor(created_at=NOW, id="")
    new = UserRow(
        id="usr_new",
        email="new",
        email_key="new",
        name="",
        role="",
        status=UserStatus.ACTIVE,
        created_at=NOW,
        updated_at=NOW,
    )
    await rows.users.add(new)
    await rows.users.by_id(user)
    await rows.users.by_email_key(email(1))
    for removed, cursor in product((False, True), (None, after)):
        await rows.users.page(after=cursor, limit=10, removed=removed)
    await rows.users.count_behind(after, 10)
    await rows.users.set_role(user, "viewer", NOW)
    await rows.users.set_status(user, UserStatus.REMOVED, NOW)
    await rows.orgs.add(
        OrgRow(id="org_new", name="new", display_name="", status="active", created_at=NOW, updated_at=NOW)
    )
    await rows.orgs.by_id(org)
    await rows.orgs.by_name(filled.orgs[0])
    await rows.orgs.page(after=after, limit=10)
    await rows.orgs.page(after=None, limit=10, ids=[org])
    for ids in (None, [org]):
        await rows.orgs.count_behind(after, 10, ids=ids)
    await rows.orgs.policies()
    await rows.orgs.set_status(org, "active", NOW)
    await rows.orgs.set_policy(org, {}, NOW)
    await rows.members.add(
        MemberRow(org_id="org_new", user_id="usr_new", role="viewer", created_at=NOW, updated_at=NOW)
    )
    await rows.members.get(org, user)
    await rows.members.by_email_key(org, email(1))
    await rows.members.of_user(user)
    await rows.members.of_users([user, filled.users[2]])
    for cursor in (None, after):
        await rows.members.page(org, after=cursor, limit=10)
    await rows.members.count_behind(org, after, 10)
    await rows.members.count(org)
    await rows.members.set_role(org, user, "viewer", NOW)
    await rows.members.delete(org, user)
    await rows.members.delete_of_user(user)
    await rows.invitations.add(
        InvitationRow(
            id="inv_new",
            org_id=org,
            email="i",
            email_key="i",
            role="r",
            token_id=None,
            created_at=NOW,
            expires_at=NOW,
        )
    )
    await rows.invitations.get("inv_new", NOW)
    await rows.invitations.of(org, "i", NOW)
    for org_id, key, cursor in product((None, org), (None, "i"), (None, after)):
        await rows.invitations.page(after=cursor, limit=10, now=NOW, org_id=org_id, email_key=key)
        await rows.invitations.count_behind(after, 10, now=NOW, org_id=org_id, email_key=key)
    await rows.invitations.count(org)
    await rows.invitations.delete_expired(org, NOW)
    await rows.invitations.delete("inv_new")
    await rows.roles.add(
        RoleRow(name="new", permissions=["*:read"], config_permissions=None, created_at=NOW, updated_at=NOW)
    )
    await rows.roles.get("new")
    await rows.roles.all()
    await rows.roles.set("new", [], NOW)
    await rows.roles.set_from_config("new", [], NOW)
    await rows.roles.record_applied("h", 1, NOW)
    await rows.roles.applied()
    await rows.roles.delete("new")


async def _log(rows: Any, recorder: Recorder) -> None:
    token, decision = recorder.logged.busy[0], recorder.logged.decisions[0]
    fields: list[dict[str, Any]] = [
        {},
        {"actor_id": token.id},
        {"actor_name": token.name},
        {"actor_name": ""},
        {"user_id": recorder.filled.users[0]},
        {"org_id": recorder.filled.org_ids[0]},
        {"target_id": token.id},
        {"request_id": decision},
        {"actor_kind": "pat"},
        {"action": "account."},
        {"action": "request.read", "org_id": recorder.filled.org_ids[0]},
        {"outcomes": ("refused",)},
        {"outcomes": ("done", "refused"), "actor_id": token.id},
        {"since": NOW - 10, "until": NOW},
        {"since": NOW - 10, "level": "account", "address": "192.0.2.1", "reason": "", "target_kind": "route"},
    ]
    for values, order, after in product(fields, SortOrder, (None, LogPosition(at=NOW - 1000, n=20))):
        await rows.log.page(LogQuery(**values), order, after, 10)
    await rows.log.newest(limit=10)
    await rows.log.head()
    report = Report(
        route="r",
        reason="x",
        permission="p",
        token_id=token.id,
        count=1,
        first_at=NOW,
        last_at=NOW,
        method="GET",
        decision_id=decision,
    )
    await rows.reports.add([report])
    await rows.reports.all()
    await rows.reports.named(NOW)
    await rows.reports.clear("r")


async def _functions(connection: AsyncConnection, recorder: Recorder) -> None:
    token, decision = recorder.logged.busy[0], recorder.logged.decisions[0]
    event = Event(action="request.read", target_kind="route", target_id="x", decision_id=decision)
    asked = RequestEvent(event=event, prefix=f"acme_pat_{token.id}", proven=True, at=NOW)
    steps: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: feed.epoch(connection),
        lambda: feed.since(connection, 100, 1000),
        lambda: feed.append(connection, 100_000, feed.new_mark(), ["token:x"], NOW),
        lambda: feed.lock_head(connection),
        lambda: feed.has(connection, 100_000, b"m"),
        lambda: feed.prune(connection, 10, kept=10),
        lambda: chain.append_many(connection, [Occurred(event=event, actor=("system", "", ""), at=NOW)]),
        lambda: chain.append_many(
            connection, [Occurred(event=event, actor=("system", "", ""), at=NOW)], written=Mark(n=7, hash="")
        ),
        lambda: chain.head(connection),
        lambda: chain.verify(connection, None, None, 10),
        lambda: chain.outdated(connection, NOW - 1000, NOW),
        lambda: chain.trim(connection, 10, 10),
        lambda: usage.add(connection, [Use(token_id=token.id, count=1, at=NOW, ip="192.0.2.1")]),
        lambda: request_events.append(connection, [asked]),
        lambda: batches.begin(connection, Batch(writer="w", number=1), NOW),
        lambda: batches.forget(connection, NOW, 10),
        lambda: chores.claim(connection, ["one", "two"], "n", 60.0, alone=False),
        lambda: chores.give_up(connection, ["one", "two"], "n"),
        lambda: chores.forget(connection, 10),
    ]
    for step in steps:
        await recorder.run("function", step())


def _problems(database: Path, ran: list[Ran]) -> set[str]:
    """The problems of these statements' plans, as sentences."""
    found: set[str] = set()
    with closing(sqlite3.connect(database)) as connection:
        for one in ran:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {one.statement}", one.parameters).fetchall()
            for *_, detail in plan:
                if (problem := _problem(one, detail)) is not None:
                    found.add(f"{one.by}: {problem}: {one.statement}")
    return found


def _problem(one: Ran, detail: str) -> str | None:
    scan = re.match(r"SCAN (\w+)(.*)", detail)
    if scan is None or one.by in SCANS_BY_PURPOSE:
        return None
    named = re.search(rf"\b(\w+) AS {scan[1]}\b", one.statement)
    table = named[1] if named else scan[1]
    if table not in GROWS:
        return None
    if "INDEX" not in scan[2] and not re.search(rf"FROM {table}\b[^()]*ORDER BY {table}\.n\b", one.statement):
        return detail
    # In the order of an index, for a page, is not from one end to the other.
    return None if "LIMIT" in one.statement else detail


def _analyse(database: Path) -> None:
    """Make the planner's statistics those of a thousand times as many rows."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("ANALYZE")
        for rowid, stat in connection.execute("SELECT rowid, stat FROM sqlite_stat1").fetchall():
            rows, *each = stat.split()
            scaled = " ".join((str(int(rows) * 1000), *each))
            connection.execute("UPDATE sqlite_stat1 SET stat = ? WHERE rowid = ?", (scaled, rowid))


async def test_no_query_scans_a_growing_table(recorder: Recorder) -> None:
    for statistics in (False, True):
        if statistics:
            _analyse(recorder.filled.database)
        recorder.ran.clear()
        async with recorder.rows() as (rows, connection_):
            for work in (_tokens, _pages, _people, _log):
                await work(rows, recorder)
            await _functions(connection_, recorder)
        assert len(recorder.ran) > 300
        problems = _problems(recorder.filled.database, recorder.ran)
        assert not problems, "\n".join(sorted(problems)[:5])
    assert _public() - recorder.called == set(), "these have no plan that was looked at"


def test_a_scan_is_detected(recorder: Recorder) -> None:
    """The check itself fails for a condition without an index and for a list in an order that no index has."""
    for statement in ("SELECT id FROM tokens WHERE name = ?", "SELECT id FROM tokens WHERE +user_id = ?"):
        assert _problems(recorder.filled.database, [Ran("test", statement, ("x",))])
