"""A store after years of use: latency of lists, changes and cold lookups with a million tokens and ten million events.

The store is filled by ``datasets.aged_store`` and ``datasets.audit_log``, then ``patgate serve`` runs on it, and every
request goes the whole way: over the control socket like the command line's, or through the gateway like a client's.
Times are the caller's, from the first byte sent to the last one read, and include everything that the answer waits for
(the commit with its fsync, argon2, notifying the workers).

The store's pages are in the kernel's cache, as in a store in use; one row has the cost of a lookup without them.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.backends.origin import run_origin
from bench.datasets.aged_store import Filled, email, fill
from bench.datasets.audit_log import Logged, fill_log
from bench.errors import BenchError
from bench.load.control_client import HEAD, Control, Timed
from bench.load.workload import BRAND
from bench.peers.patgate import Installation, install, processes, running
from bench.report.figures import Figure, Part, Run, Table, spread
from bench.scenarios.list_queries import audit_lists, token_lists
from bench.system.cpu_time import cpu_ns
from bench.testbed import resident
from proxy.core.token import TokenFormat
from proxy.services import derived_secrets
from proxy.settings.sources.secret import load_or_create
from proxy.store.address import sqlite_path, store_url
from proxy.store.store import Store

TOKENS: Final = 1_000_000
EVENTS: Final = 10_000_000
ROUNDS: Final = 100
_SEED: Final = 4
_BYTES: Final = (2200, 1100)
"""Bytes of disk for each token and each event, with their indexes and the space for building these."""
_LIST_MS: Final = 50.0
_AUDIT_MS: Final = 200.0
_MINT_MS: Final = 60.0
_REVOKE_MS: Final = 30.0
_LOOKUP_MS: Final = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """Everything that was measured, while patgate ran and after."""

    lists: list[Timed]
    scanning: list[Timed]
    by_actor: Timed
    audit: list[Timed]
    changes: dict[str, Timed]
    large: list[Timed]
    lookups: dict[str, Timed]


def measure(run: Run) -> Part:
    """Fill the store, serve it and measure. Raises BenchError if the disk has no room or an answer was wrong."""
    tokens, events, rounds = run.tokens or TOKENS, run.events or EVENTS, run.rounds or ROUNDS
    _require_room(run.directory, tokens * _BYTES[0] + events * _BYTES[1])
    with run_origin(run.directory, run.cores) as origin:
        installation = install(run.directory / "patgate", origin.port)
        began = time.monotonic()
        filled = fill(installation.data_dir, tokens=tokens, seed=_SEED, now=time.time())
        logged = fill_log(filled, events=events, seed=_SEED)
        filled_in = time.monotonic() - began
        size = filled.database.stat().st_size
        _log(f"filled in {filled_in:.0f} s: {size / 1e9:.1f} GB")
        began = time.monotonic()
        with running(installation) as process:
            started = time.monotonic() - began
            authority = processes(process.pid)["authority"]
            before = resident(authority)
            found = _requests(installation, authority, filled, logged, rounds)
            verified = _verify(installation.data_dir, authority, events)
            after = resident(authority)
        resolved = asyncio.run(_resolve_alone(installation.data_dir, filled, rounds))
    rows = [timed.cells for timed in (found.by_actor, *found.audit)]
    return Part(
        figures=_figures(found, tokens, events),
        tables=(
            Table(head=("pages of 100 tokens", *HEAD), rows=tuple(one.cells for one in found.lists)),
            Table(head=("that look through many", *HEAD), rows=tuple(one.cells for one in found.scanning)),
            Table(head=("pages of 100 events", *HEAD), rows=tuple(rows)),
            Table(head=("changes", *HEAD), rows=tuple(one.cells for one in found.changes.values())),
            Table(head=("large changes", *HEAD), rows=tuple(one.cells for one in found.large)),
            Table(head=("lookups", *HEAD), rows=tuple(one.cells for one in (*found.lookups.values(), *resolved))),
        ),
        notes=(
            f"{tokens:,} tokens of {len(filled.users):,} users in {len(filled.orgs)} organisations, {events:,} audit "
            f"events: {size / 1e9:.1f} GB in SQLite, filled in {filled_in:.0f} s.",
            f"From executing `patgate serve` on it to /readyz 200: {started:.2f} s. Memory (RSS) of the authority: "
            f"{before / 1e6:.0f} MB then, {after / 1e6:.0f} MB at the end.",
            f"The chain of {events:,} events was verified in {verified:.0f} s, "
            f"{events / max(verified, 1e-9):,.0f} a second, while everything else is served.",
            "A page is asked for over the control socket by an operator, who sees everything; the longest is from the "
            "first use of a query, which is compiled then. CPU is the authority's for one answer, all threads.",
        ),
    )


def _figures(found: _Found, tokens: int, events: int) -> tuple[Figure, ...]:
    def figure(what: str, values: Sequence[float], bound: float) -> Figure:
        return Figure(what=what, spread=spread(values), bound=bound, unit=" ms")

    store = f"{tokens:,} tokens and {events:,} audit events"
    return (
        figure(f"{store}: p99 of a page of tokens, each filter", [max(one.p99 for one in found.lists)], _LIST_MS),
        figure(f"{store}: p99 of a page of audit events by actor", [found.by_actor.p99], _AUDIT_MS),
        figure(f"{store}: p99 of making a token", [found.changes["mint"].p99], _MINT_MS),
        figure(f"{store}: p99 of revoking one", [found.changes["revoke"].p99], _REVOKE_MS),
        figure(f"{store}: p99 of the first request with a token", [found.lookups["first"].p99], _LOOKUP_MS),
    )


def _require_room(directory: Path, needed: int) -> None:
    kinds = {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if directory.resolve().is_relative_to(place):
            kinds[len(place)] = kind
    if kinds and kinds[max(kinds)] in ("tmpfs", "ramfs"):
        raise BenchError("The temporary directory is in memory: let TMPDIR name one on a disk.")
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise BenchError(
            f"The store needs {needed / 1e9:.0f} GB of disk and {free / 1e9:.0f} are free: ask for fewer --events, or "
            "let TMPDIR name another disk."
        )


def _requests(installation: Installation, authority: int, filled: Filled, logged: Logged, rounds: int) -> _Found:
    rng = random.Random(_SEED)
    lookups = _lookups(installation, authority, filled, rounds, rng)
    with Control(installation.data_dir, authority) as control:
        control.ask("GET", "/tokens")
        lists, scanning = token_lists(control, filled, rounds, rng)
        _log("token lists")
        by_actor, audit = audit_lists(control, filled, logged, rounds, rng)
        _log("audit lists")
        changes = _changes(control, filled, rounds, rng)
        _log("changes")
        with Control(installation.data_dir, authority) as other:
            large = _large(control, other, filled)
        _log("large changes")
    return _Found(lists=lists, scanning=scanning, by_actor=by_actor, audit=audit, changes=changes, large=large,
                  lookups=lookups)  # fmt: skip


def _changes(control: Control, filled: Filled, rounds: int, rng: random.Random) -> dict[str, Timed]:
    """One change after the other; each is durable when answered."""
    active = [n for n in rng.sample(range(1, len(filled.users)), rounds * 2) if n % 100 != 99 and n % 500 != 250]
    owners = rng.choices(active, k=rounds)
    made: list[str] = []

    def timed(what: str, work: Callable[[int], tuple[Any, float]]) -> Timed:
        return control.metered(what, (partial(work, number) for number in range(rounds)))

    def mint(number: int) -> tuple[Any, float]:
        body = {"user": email(owners[number]), "name": f"made {number}", "expires": 86400.0, "scopes": ["*:read"]}
        document, took = control.timed("POST", "/tokens", body)
        made.append(document["id"])
        return document, took

    def on(verb: str, body: object = None) -> Callable[[int], tuple[Any, float]]:
        return lambda number: control.timed("POST", f"/tokens/{made[number]}/{verb}", body or {})

    def user(verb: str) -> Callable[[int], tuple[Any, float]]:
        return lambda number: control.timed("POST", f"/users/{email(active[number % len(active)])}/{verb}", {})

    return {
        "mint": timed("make a token", mint),
        "rotate": timed("rotate one", on("rotate")),
        "scopes": timed("add a scope", on("scopes", {"scopes": ["things:update"]})),
        "revoke": timed("revoke one", on("revoke")),
        "regenerate": timed("regenerate one", on("regenerate", {"expires": 3600.0})),
        "delete": timed("delete one", lambda number: control.timed("DELETE", f"/tokens/{made[number]}")),
        "suspend": timed("suspend a user", user("suspend")),
        "resume": timed("resume a user", user("resume")),
    }


def _large(control: Control, other: Control, filled: Filled) -> list[Timed]:
    """Changes that affect many tokens, and how long another caller's change waits meanwhile."""
    first, tokens = filled.tokens[0].id, sum(one.user_id == filled.users[0] for one in filled.tokens)
    many = f"{tokens:,} tokens"
    work: list[tuple[str, Callable[[], tuple[Any, float]]]] = [
        (f"revoke the token that made {many}", lambda: control.timed("POST", f"/tokens/{first}/revoke", {})),
        (f"delete the {many} of a user", lambda: control.timed("DELETE", "/tokens", user=email(0))),
        ("remove a user", lambda: control.timed("DELETE", f"/users/{email(1)}")),
        (
            "suspend the largest organisation",
            lambda: control.timed("POST", f"/orgs/{filled.orgs[0]}/suspend", {}),
        ),
    ]
    found = []
    with ThreadPoolExecutor(1) as pool:
        names = iter(range(10_000))
        for what, change in work:
            pending = pool.submit(change)
            waits = []
            while not pending.done():
                body = {"name": f"bench-{next(names)}"}
                waits.append(other.timed("POST", "/orgs", body)[1])
            found.append(Timed(what=what, times=(pending.result()[1],)))
            found.append(Timed(what=f"{what}: other changes meanwhile", times=tuple(waits) or (0.0,)))
    return found


def _lookups(
    installation: Installation, authority: int, filled: Filled, rounds: int, rng: random.Random
) -> dict[str, Timed]:
    """Requests through the gateway with tokens that no worker has cached, repeated, and with a cold page cache."""
    count = min(rounds * 10, len(filled.valid_tokens) // 2)
    drawn = rng.sample(filled.valid_tokens, count * 2)
    warm, cold = drawn[:count], drawn[count:]
    connection = http.client.HTTPConnection("127.0.0.1", installation.port, timeout=30)

    def ask(token: str) -> float:
        began = time.perf_counter()
        connection.request("GET", "/v1/things", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        answer.read()
        took = (time.perf_counter() - began) * 1e3
        if answer.status != 200:
            raise BenchError(f"A known token was answered with {answer.status}.")
        return took

    try:
        ask(warm[0])
        before = cpu_ns((authority,))
        times = tuple(map(ask, warm[1:]))
        cpu = (cpu_ns((authority,)) - before) / 1e6 / len(times)
        found = {
            "first": Timed(what="the first request with a token", times=times, cpu=cpu),
            "again": Timed(what="the second", times=tuple(map(ask, warm[1:]))),
        }
        _forget_pages(filled.database)
        few = cold[:rounds]
        found["disk"] = Timed(what="the first, the store's pages on the disk", times=tuple(map(ask, few)))
        return found
    finally:
        connection.close()


def _forget_pages(database: Path) -> None:
    """Make the kernel drop its cached pages of the file."""
    with database.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _verify(data_dir: Path, authority: int, events: int) -> float:
    """Seconds to verify the whole log, step by step, as the command does. Raises BenchError if it is not valid."""
    began = time.monotonic()
    after, checked = None, 0
    with Control(data_dir, authority) as control:
        while True:
            step = control.ask("POST", "/audit/verify", {} if after is None else {"after": after})
            if step["problem"] is not None:
                raise BenchError(f"The audit log is not valid: {step['problem']}.")
            checked, after = checked + step["events"], step["next"]
            if after is None:
                break
    if checked < events:
        raise BenchError(f"Of {events:,} audit events {checked:,} were verified.")
    return time.monotonic() - began


async def _resolve_alone(data_dir: Path, filled: Filled, rounds: int) -> list[Timed]:
    """The authority's store query for a token alone, without the connection to the gateway; patgate is stopped."""
    fingerprint = derived_secrets.fingerprint(load_or_create(data_dir, sqlite_path(store_url("sqlite", data_dir))))
    store = await Store.open(store_url("sqlite", data_dir), key_fingerprint=fingerprint)
    try:
        parsed = [TokenFormat(BRAND).parse(token) for token in filled.valid_tokens[: rounds * 10]]
        times = []
        for one in parsed:
            if one is not None:
                began = time.perf_counter()
                await store.resolve([one.token_id])
                times.append((time.perf_counter() - began) * 1e3)
        return [Timed(what="the authority's question to the store alone", times=tuple(times[1:]))]
    finally:
        await store.close()


def _log(what: str) -> None:
    print(f"bench store: {what}", file=sys.stderr, flush=True)
