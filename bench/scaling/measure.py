"""Measuring every quantity of ``measurements`` on a private PostgreSQL, in short runs."""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

import asyncpg

from bench.datasets.aged_store import Filled
from bench.errors import BenchError
from bench.report import results
from bench.report.figures import Spread, spread
from bench.scaling import dataset, statements
from bench.scaling.fleet import Observed, observe
from bench.scaling.measurements import Measurements
from bench.scaling.probe import (
    BATCH,
    Cost,
    FanOut,
    Prober,
    Revoker,
    Session,
    Work,
    add_nodes,
    add_uses,
    append_events,
    connect,
    node_ids,
    private_bytes,
)
from bench.system import machine
from bench.system.postgres import USER, Server, run_server
from proxy.store.dialects import postgresql_nodes as nodes
from proxy.store.nodes.history import ACCEPTANCES

_DATABASE: Final = "postgres"
_AT_ONCE: Final = 32
_MANY: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is measured."""

    tokens: int = 40_000
    events: int = 80_000
    rounds: int = 3
    seconds: float = 0.4
    """Of each round."""
    rows: tuple[int, int, int] = (3, 100, 1000)
    """Of nodes, for a poll."""
    listeners: tuple[int, ...] = (1, 20, 80)
    fleets: tuple[tuple[int, float], ...] = ((3, 10.0), (10, 10.0), (30, 10.0), (10, 50.0))
    """Nodes and changes a second."""
    fleet_seconds: float = 3.0
    fleet_runs: int = 3
    """Of each fleet; the one that other work of the machine disturbed least counts."""


def measure(sizes: Sizes, *, check: bool = True) -> Measurements:
    """Start a PostgreSQL, fill it and measure. Raises BenchError if a quantity is implausible, unless not checked."""
    with tempfile.TemporaryDirectory(prefix="patgate-bench-") as directory, run_server() as server:
        filled = dataset.filled_store(Path(directory), tokens=sizes.tokens, events=sizes.events)
        quantities, fleets = asyncio.run(_measure(server, filled, sizes))
        measured = Measurements(
            taken=f"{datetime.now(UTC):%Y-%m-%d}", machine=_facts(server), quantities=quantities, fleets=fleets
        )
    if check and (problems := measured.implausible()):
        raise BenchError(" ".join(problems))
    return measured


def _facts(server: Server) -> dict[str, str]:
    known = machine.facts("not measured")
    return {
        "processor": known["processor"],
        "kernel": known["kernel"],
        "Python": f"CPython {platform.python_version()}, asyncpg {metadata.version('asyncpg')}",
        "PostgreSQL": f"{server.version}, shared_buffers 256 MB, over a Unix socket",
        "load": f"other work ran on the machine (load average {os.getloadavg()[0]:.1f} at the end)",
    }


async def _measure(server: Server, filled: Filled, sizes: Sizes) -> tuple[dict[str, Spread], list[Observed]]:
    # What prepares a measurement need not be durable.
    quick = {"synchronous_commit": "off"}
    control = await asyncpg.connect(host=server.sockets, user=USER, database=_DATABASE, server_settings=quick)
    try:
        held = await dataset.copy(control, filled)
        found = await _bytes(control, held)
        await control.execute("CHECKPOINT")
        prober = Prober(server, control, seconds=sizes.seconds, rounds=sizes.rounds)
        found["disk_sync"] = prober.disk_sync_us()
        async with AsyncExitStack() as stack:
            sessions = []
            for _ in range(max(_MANY, *sizes.listeners) + 1):
                sessions.append(await connect(server, _DATABASE))
                stack.push_async_callback(sessions[-1].close)
            found |= await _protocol(prober, control, sessions, held, sizes.rows)
            found |= await _notify(prober, sessions, sizes.listeners)
            found |= await _requests(prober, sessions, held)
            found["session_bytes"] = spread([float(private_bytes(one.pid)) for one in sessions[:_MANY]])
        fleets = []
        for count, rate in sizes.fleets:
            runs = [
                await observe(server, _DATABASE, held, count=count, rate=rate, seconds=sizes.fleet_seconds)
                for _ in range(sizes.fleet_runs)
            ]
            fleets.append(min(runs, key=lambda run: run.acknowledged_p50))
        return found | _published(), fleets
    finally:
        await control.close()


async def _bytes(control: asyncpg.Connection, held: dataset.Dataset) -> dict[str, Spread]:
    async def size(table: str, rows: int) -> Spread:
        return spread([int(await control.fetchval("SELECT pg_total_relation_size($1::regclass)", table)) / rows])

    usages = int(await control.fetchval("SELECT count(*) FROM token_usage"))
    return {
        "token_bytes": await size("tokens", len(held.tokens)),
        "usage_bytes": await size("token_usage", usages),
        "event_bytes": await size("audit_events", held.events),
    }


async def _protocol(
    prober: Prober,
    control: asyncpg.Connection,
    sessions: Sequence[Session],
    held: dataset.Dataset,
    counts: Sequence[int],
) -> dict[str, Spread]:
    """Renewals, acknowledgements, polls, fetches, changes."""
    ids = node_ids(max(_MANY, *counts))
    await add_nodes(control, ids, held.change)
    one, found = sessions[0], {}
    found["round_trip"] = (await prober.cost(one, await _repeated(one, "SELECT 1"))).wall_us
    head = await control.fetchrow("SELECT n, mark FROM change_head")
    known = (head["n"], head["mark"], ACCEPTANCES)
    renewals = [await _prepared(each, nodes.RENEW, id_, *known) for each, id_ in zip(sessions, ids, strict=False)]
    found |= _named("renewal", await prober.cost(one, renewals[0]), log=True)
    found |= _named("head", await prober.cost(one, await _repeated(one, nodes.HEAD)))
    acks = [await _acknowledging(each, id_) for each, id_ in zip(sessions, ids, strict=False)]
    found |= _named("acknowledgement", await prober.cost(one, acks[0]), log=True)
    found["renewals_1"] = await prober.rate(renewals[:1])
    found["renewals_16"] = await prober.rate(renewals[:_MANY])
    found["acknowledgements_16"] = await prober.rate(acks[:_MANY])
    polls = []
    for rows in counts:
        await add_nodes(control, ids[:rows], held.change)
        polls.append(await prober.cost(one, await _repeated(one, nodes.POLL)))
    found |= _line("poll_server", counts, [poll.server_us for poll in polls])
    found |= _line("poll_client", counts, [poll.client_us for poll in polls])
    await add_nodes(control, ids[:3], held.change)
    last = int(await control.fetchval("SELECT n FROM change_head"))
    text, values = statements.fetch(last - 1)
    found |= _named("fetch", await prober.cost(one, await _prepared(one, text, *values)))
    changes: list[Work] = [Revoker(each.connection, held) for each in sessions]
    change = await prober.cost(one, changes[0])
    found |= _named("change", change, log=True)
    found["change_wall"] = change.wall_us
    found["changes_1"] = await prober.rate(changes[:1])
    found["changes_8"] = await prober.rate(changes[:8])
    return found


async def _notify(prober: Prober, sessions: Sequence[Session], counts: Sequence[int]) -> dict[str, Spread]:
    notifier, *others = sessions
    await notifier.connection.execute("SET synchronous_commit = off")
    fans: list[FanOut] = [await prober.fan_out(notifier, others[:count]) for count in counts]
    await notifier.connection.execute("SET synchronous_commit = on")
    each = _line("sender", counts, [fan.sender_us for fan in fans])["sender_row"]
    return {"notify_sender": each, "notify_receiver": fans[-1].receiver_us}


async def _requests(prober: Prober, sessions: Sequence[Session], held: dataset.Dataset) -> dict[str, Spread]:
    """Grants, uses and events."""

    async def resolving(session: Session, size: int) -> Work:
        text, _ = statements.resolve(held.tokens[:size])
        prepared = await session.connection.prepare(text)

        async def work(number: int) -> None:
            ids = [held.tokens[(number * size + place) * 7919 % len(held.tokens)] for place in range(size)]
            await prepared.fetch(*statements.resolve(ids)[1])

        return work

    one = sessions[0]
    token = await one.connection.fetchrow("SELECT id, name, user_id FROM tokens WHERE user_id IS NOT NULL LIMIT 1")

    async def uses(number: int) -> None:
        chosen = {held.tokens[(number * BATCH + place) * 7919 % len(held.tokens)] for place in range(BATCH)}
        await add_uses(one.connection, sorted(chosen))

    async def events(_: int) -> None:
        await append_events(one.connection, token)

    single = await prober.cost(one, await resolving(one, 1))
    batch = await prober.cost(one, await resolving(one, _AT_ONCE), each=_AT_ONCE)
    used, logged = await prober.cost(one, uses, each=BATCH), await prober.cost(one, events, each=BATCH)
    return {
        "grant_server": single.server_us,
        "grant_batch_server": batch.server_us,
        "grants_16": await prober.rate([await resolving(each, 1) for each in sessions[:_MANY]]),
        "use_server": used.server_us,
        "use_log": used.wal_bytes,
        "event_server": logged.server_us,
        "event_log": logged.wal_bytes,
        "event_wall": logged.wall_us,
    }


def _published() -> dict[str, Spread]:
    """The costs of a request and of a cached grant, from bench/results.json. Raises BenchError if it has none."""
    every = results.load()
    try:
        (table,) = every["cpu"].part.tables
        worker = next(row for row in table.rows if row[0] == "patgate")[1]
        notes = " ".join(every["cpu"].part.notes) + " " + " ".join(every["memory"].part.notes)
        beside = [float(notes.partition(f"patgate's {name}, beside it: ")[2].split()[0])
                  for name in ("authority", "supervisor")]  # fmt: skip
        grant = float(notes.partition("One cached grant: ")[2].split()[0].replace(",", ""))
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise BenchError("bench/results.json has no cost of a request or of a cached grant.") from error
    return {"gateway_cpu": spread([float(worker.split()[0]) + sum(beside)]), "cached_grant": spread([grant])}


async def _prepared(session: Session, statement: str, *values: object) -> Work:
    """Send a statement with the same values each time."""
    prepared = await session.connection.prepare(statement)
    return lambda _: prepared.fetch(*values)


async def _repeated(session: Session, statement: str) -> Work:
    return await _prepared(session, statement)


async def _acknowledging(session: Session, id_: str) -> Work:
    prepared = await session.connection.prepare(nodes.ACKNOWLEDGE)
    return lambda number: prepared.fetch(id_, number)


def _named(name: str, cost: Cost, *, log: bool = False) -> dict[str, Spread]:
    found = {f"{name}_server": cost.server_us, f"{name}_client": cost.client_us}
    return found | {f"{name}_log": cost.wal_bytes} if log else found


def _line(name: str, sizes: Sequence[int], costs: Sequence[Spread]) -> Mapping[str, Spread]:
    """The cost for no row and for each row, as the straight line through the smallest and the largest size."""
    few, many = costs[0], costs[-1]
    span = sizes[-1] - sizes[0]
    each = {
        "median": max(0.0, many.median - few.median) / span,
        "low": max(0.0, many.low - few.high) / span,
        "high": max(0.0, many.high - few.low) / span,
    }
    rest = sizes[0] * each["median"]
    return {
        name: Spread(median=few.median - rest, low=few.low - rest, high=few.high - rest),
        f"{name}_row": Spread(**each),
    }
