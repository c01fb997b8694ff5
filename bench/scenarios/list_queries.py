"""Queries for lists: pages of tokens and of the audit log, by every filter, from the beginning and from deep inside."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from bench.datasets.aged_store import DAY, Filled, email
from bench.datasets.audit_log import Logged
from bench.load.control_client import Control, Timed
from proxy.services.paging import write_cursor
from proxy.store.records import Cursor

Queries = Sequence[Mapping[str, object]]


def token_lists(control: Control, filled: Filled, rounds: int, rng: random.Random) -> tuple[list[Timed], list[Timed]]:
    """Pages of a hundred tokens: by filters that an index answers, and by filters that scan a bounded range."""

    def deep(**query: object) -> Queries:
        """Pages after tokens drawn at random."""
        chosen = rng.choices(filled.tokens, k=rounds)
        return [{**query, "cursor": write_cursor(Cursor(created_at=one.created_at, id=one.id))} for one in chosen]

    def same(**query: object) -> Queries:
        return [query] * rounds

    users = [rng.randrange(1, len(filled.users)) for _ in range(rounds)]
    active = [number for number in users if number % 100 != 99]
    largest, largest_owner, first = filled.orgs[0], email(0), filled.tokens[0].id
    queries: list[tuple[str, Queries]] = [
        ("all, first page", same()),
        ("all, deep", deep()),
        ("of a user", [{"user": email(number)} for number in active]),
        ("of the user with the most, deep", deep(user=largest_owner)),
        ("of an organisation", [{"org": name} for name in rng.choices(filled.orgs[1:], k=rounds)]),
        ("of the largest organisation, deep", deep(org=largest)),
        *((f"{status}, first page", same(status=status)) for status in ("active", "expired", "revoked")),
        *((f"{status}, deep", deep(status=status)) for status in ("active", "expired", "revoked")),
        ("revoked, of the largest organisation", same(status="revoked", org=largest)),
        ("active, of the user with the most", same(status="active", user=largest_owner)),
        ("keys, deep", deep(kind="key")),
        ("keys of an organisation", [{"kind": "key", "org": name} for name in rng.choices(filled.orgs, k=rounds)]),
        ("that end within 14 days", same(expiring_within=f"{14 * DAY:.0f}")),
        ("that end within 14 days, of an organisation", same(expiring_within=f"{14 * DAY:.0f}", org=filled.orgs[3])),
    ]
    scanning: list[tuple[str, Queries]] = [
        ("made by the token that made the most", same(parent=first)),
        ("that end within 14 days, of the largest organisation", same(expiring_within=f"{14 * DAY:.0f}", org=largest)),
        ("unused for a year, deep", deep(unused_for=f"{365 * DAY:.0f}")),
    ]
    few = max(3, rounds // 10)
    return (
        [control.each(what, "GET", "/tokens", query) for what, query in queries],
        [control.each(what, "GET", "/tokens", query[:few]) for what, query in scanning],
    )


def audit_lists(
    control: Control, filled: Filled, logged: Logged, rounds: int, rng: random.Random
) -> tuple[Timed, list[Timed]]:
    """Pages of a hundred events: by actor, and by everything else."""

    def same(**query: object) -> Queries:
        return [query] * rounds

    busy = logged.busy[0]
    some = [{"actor": one.id} for one in rng.choices(logged.some, k=rounds)]
    actors = [*some, *({"actor": one.id} for one in rng.choices(logged.busy, k=rounds)), *same(actor=busy.id)]
    by_actor = control.each("by actor", "GET", "/audit", actors)
    users = [number for number in (rng.randrange(len(filled.users)) for _ in range(rounds)) if number % 100 != 99]
    queries: list[tuple[str, Queries]] = [
        ("all", same()),
        ("by actor, for the first time", some),
        ("by the busiest actor, refused", same(actor=busy.id, denied="true")),
        ("by the name of a token", [{"actor_name": one.name} for one in rng.choices(logged.some, k=rounds)]),
        ("by user", [{"user": email(number)} for number in users]),
        ("by organisation", [{"org": name} for name in rng.choices(filled.orgs, k=rounds)]),
        ("by the largest organisation, one action", same(org=filled.orgs[0], action="account.pat.mint")),
        ("refused", same(denied="true")),
        ("by action, frequent", same(action="request.create")),
        ("by action, rare", same(action="account.key.mint")),
        ("by target", [{"target": one.id} for one in rng.choices(logged.some, k=rounds)]),
        ("by decision", [{"request": one} for one in rng.choices(logged.decisions, k=rounds)]),
        ("since an hour ago", same(since="1h")),
        ("until a year ago", same(until="365d")),
        ("of one address, refused", same(address="192.0.2.7", denied="true")),
    ]
    return by_actor, [control.each(what, "GET", "/audit", query) for what, query in queries]
