"""A store after years of use: latency of lists, changes and cold lookups with a million tokens and ten million events.

The embedded store is filled by ``datasets.aged_store`` and ``datasets.audit_log``, and copied into a PostgreSQL with
durable commits. Then ``patgate serve`` runs on each, one after the other, and every request goes the whole way: over
the control socket like the command line's, or through the gateway like a client's. Times are the caller's, from the
first byte sent to the last one read, and include everything that the answer waits for (the commit with its fsync,
argon2, notifying the workers; with PostgreSQL also its acknowledgement).

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
from bench.datasets.copied_store import copy_into
from bench.errors import BenchError
from bench.load.control_client import HEAD, Control, Timed
from bench.load.workload import BRAND
from bench.peers.patgate import Installation, install, processes, running
from bench.report.figures import Figure, Part, Run, Table, spread
from bench.scenarios.list_queries import audit_lists, token_lists
from bench.system.cpu_time import cpu_ns
from bench.system.postgres import run_server
from bench.testbed import resident
from proxy.core.token import TokenFormat
from proxy.services import derived_secrets
from proxy.settings.sources.secret import load_or_create
from proxy.store.address import store_url
from proxy.store.store import Store

TOKENS: Final = 1_000_000
EVENTS: Final = 10_000_000
ROUNDS: Final = 100
VERIFIED: Final = 1_000_000
"""Events of the chain that are verified on each store: some minutes."""
_SEED: Final = 4
_STORES: Final = ("SQLite", "PostgreSQL")
_BYTES: Final = (2200, 1100)
"""Bytes of disk for each token and each event, with their indexes and the space for building these."""
_LIST_MS: Final = 50.0
_AUDIT_MS: Final = 200.0
_MINT_MS: Final = 60.0
_REVOKE_MS: Final = 30.0
_LOOKUP_MS: Final = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """Everything that was measured on one store, while patgate ran and after."""

    lists: list[Timed]
    scanning: list[Timed]
    events: list[Timed]
    """Pages of the audit log; the first is by actor."""
    changes: dict[str, Timed]
    large: list[Timed]
    lookups: dict[str, Timed]
    started: float
    """Seconds until it was ready."""
    memory: tuple[int, int]
    """Bytes of the authority when it was ready, and at the end."""
    verified: tuple[int, float]
    """Events of the chain, and the seconds in which they were verified."""


def measure(run: Run) -> Part:
    """Fill the stores, serve them and measure. Raises BenchError if the disk has no room or an answer was wrong."""
    tokens, events, rounds = run.tokens or TOKENS, run.events or EVENTS, run.rounds or ROUNDS
    _require_room(run.directory, 2 * (tokens * _BYTES[0] + events * _BYTES[1]))
    with run_origin(run.directory, run.cores) as origin, run_server() as server:
        embedded = install(run.directory / "embedded", origin.port)
        began = time.monotonic()
        filled = fill(embedded.data_dir, tokens=tokens, seed=_SEED, now=time.time())
        logged = fill_log(filled, events=events, seed=_SEED)
        filled_in = time.monotonic() - began
        size = filled.database.stat().st_size
        _log(f"filled in {filled_in:.0f} s: {size / 1e9:.1f} GB")
        began = time.monotonic()
        store = copy_into(filled.database, server, "postgres")
        copied_in = time.monotonic() - began
        _log(f"copied into PostgreSQL in {copied_in:.0f} s")
        secret_key = (embedded.data_dir / "secret.key").read_text().strip()
        shared = install(run.directory / "shared", origin.port, store=store, secret_key=secret_key)
        found = [
            _on(embedded, store_url("sqlite", embedded.data_dir), filled, logged, rounds),
            _on(shared, store, filled, logged, rounds),
        ]
        space = server.size("postgres")
    return Part(
        figures=tuple(
            figure
            for name, one in zip(_STORES, found, strict=True)
            for figure in _figures(one, f"{name}, {tokens:,} tokens and {events:,} audit events")
        ),
        tables=(
            _table("pages of 100 tokens", [one.lists for one in found]),
            _table("that look through many", [one.scanning for one in found]),
            _table("pages of 100 events", [one.events for one in found]),
            _table("changes", [list(one.changes.values()) for one in found]),
            _table("large changes", [one.large for one in found]),
            _table("lookups", [list(one.lookups.values()) for one in found]),
        ),
        notes=(
            f"{tokens:,} tokens of {len(filled.users):,} users in {len(filled.orgs)} organisations, {events:,} audit "
            f"events: {size / 1e9:.1f} GB in SQLite, filled in {filled_in:.0f} s; {space / 1e9:.1f} GB in PostgreSQL "
            f"{server.version} (on the same machine, over a Unix socket, `fsync` on, `shared_buffers` 256 MB), copied "
            f"in {copied_in:.0f} s. `patgate store copy` also compares every row and verifies the chain twice.",
            *(_notes(name, one) for name, one in zip(_STORES, found, strict=True)),
            "A page is asked for over the control socket by an operator, who sees everything; the longest is from the "
            "first use of a query, which is compiled then. CPU is the authority's for one answer, all threads, without "
            "the database's processes.",
        ),
    )


def _notes(name: str, one: _Found) -> str:
    events, seconds = one.verified
    return (
        f"{name}: from executing `patgate serve` to /readyz 200 {one.started:.2f} s; memory (RSS) of the authority "
        f"{one.memory[0] / 1e6:.0f} MB then, {one.memory[1] / 1e6:.0f} MB at the end; the chain of audit events is "
        f"verified at {events / max(seconds, 1e-9):,.0f} a second (the first {events:,})."
    )


def _table(what: str, found: Sequence[Sequence[Timed]]) -> Table:
    """A row for each kind of request, with the cells of each store; empty where a store has none."""
    names = dict.fromkeys(one.what for some in found for one in some)
    by_name = [{one.what: one for one in some} for some in found]
    rows = []
    for name in names:
        times = next(str(len(some[name].times)) for some in by_name if name in some)
        cells = [some[name].cells[2:] if name in some else ("",) * len(HEAD[1:]) for some in by_name]
        rows.append((name, times, *(cell for each in cells for cell in each)))
    head = (what, HEAD[0], *(f"{store}: {label}" for store in _STORES for label in HEAD[1:]))
    return Table(head=head, rows=tuple(rows))


def _figures(found: _Found, store: str) -> tuple[Figure, ...]:
    def figure(what: str, values: Sequence[float], bound: float) -> Figure:
        return Figure(what=what, spread=spread(values), bound=bound, unit=" ms")

    return (
        figure(f"{store}: p99 of a page of tokens, each filter", [max(one.p99 for one in found.lists)], _LIST_MS),
        figure(f"{store}: p99 of a page of audit events by actor", [found.events[0].p99], _AUDIT_MS),
        figure(f"{store}: p99 of making a token", [found.changes["mint"].p99], _MINT_MS),
        figure(f"{store}: p99 of revoking one", [found.changes["revoke"].p99], _REVOKE_MS),
        figure(f"{store}: p99 of the first request with a token", [found.lookups["first"].p99], _LOOKUP_MS),
    )


def _on(installation: Installation, url: str, filled: Filled, logged: Logged, rounds: int) -> _Found:
    """Serve one store, which is at ``url``, and measure."""
    began = time.monotonic()
    with running(installation) as process:
        started = time.monotonic() - began
        authority = processes(process.pid)["authority"]
        before = resident(authority)
        rng = random.Random(_SEED)
        # SQLite's file can be forgotten by the kernel; a database server has a cache of its own.
        lookups = _lookups(installation, authority, filled, rounds, rng, cold=url.startswith("sqlite"))
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
        verified = _verify(installation.data_dir, authority, min(VERIFIED, logged.events))
        after = resident(authority)
    alone = asyncio.run(_resolve_alone(url, filled, rounds))
    return _Found(
        lists=lists, scanning=scanning, events=[by_actor, *audit], changes=changes, large=large,
        lookups={**lookups, "alone": alone}, started=started, memory=(before, after), verified=verified,
    )  # fmt: skip


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
    installation: Installation, authority: int, filled: Filled, rounds: int, rng: random.Random, *, cold: bool
) -> dict[str, Timed]:
    """Requests through the gateway with tokens that no worker has cached, repeated, and with a ``cold`` page cache."""
    count = min(rounds * 10, len(filled.valid_tokens) // 2)
    drawn = rng.sample(filled.valid_tokens, count * 2)
    warm, unread = drawn[:count], drawn[count:]
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
        if cold:
            _forget_pages(filled.database)
            times = tuple(map(ask, unread[:rounds]))
            found["disk"] = Timed(what="the first, the store's pages on the disk", times=times)
        return found
    finally:
        connection.close()


def _forget_pages(database: Path) -> None:
    """Make the kernel drop its cached pages of the file."""
    with database.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _verify(data_dir: Path, authority: int, events: int) -> tuple[int, float]:
    """Verify at least so many events, step by step, as the command does; how many, and the seconds.

    Raises BenchError if the chain is not valid.
    """
    began = time.monotonic()
    after, checked = None, 0
    with Control(data_dir, authority) as control:
        while checked < events:
            step = control.ask("POST", "/audit/verify", {} if after is None else {"after": after})
            if step["problem"] is not None:
                raise BenchError(f"The audit log is not valid: {step['problem']}.")
            checked, after = checked + step["events"], step["next"]
            if after is None:
                break
    if checked < events:
        raise BenchError(f"Of {events:,} audit events {checked:,} were verified.")
    return checked, time.monotonic() - began


async def _resolve_alone(url: str, filled: Filled, rounds: int) -> Timed:
    """The authority's store query for a token alone, without the connection to the gateway; patgate is stopped."""
    key = load_or_create(filled.database.parent, filled.database)
    store = await Store.open(url, key_fingerprint=derived_secrets.fingerprint(key))
    try:
        parsed = [TokenFormat(BRAND).parse(token) for token in filled.valid_tokens[: rounds * 10]]
        times = []
        for one in parsed:
            if one is not None:
                began = time.perf_counter()
                await store.resolve([one.token_id])
                times.append((time.perf_counter() - began) * 1e3)
        return Timed(what="the authority's question to the store alone", times=tuple(times[1:]))
    finally:
        await store.close()


def _log(what: str) -> None:
    print(f"bench store: {what}", file=sys.stderr, flush=True)
