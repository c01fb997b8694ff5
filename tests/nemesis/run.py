"""One run: clients and a nemesis against a cluster, then the verdict and a report of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.history.checker import Outcome
from tests.nemesis.faults import Maker
from tests.nemesis.nemesis import Nemesis
from tests.nemesis.node import Node
from tests.nemesis.plan import Plan
from tests.nemesis.record import Record
from tests.nemesis.verdict import Event, Verdict, judge, percentile
from tests.support.gateway import ROOT
from tests.support.process import wait_until

END_SECONDS: Final = 150.0
"""How long a client may take to finish what it has begun."""
PRINTED_SECONDS: Final = 10.0
LATELY_SECONDS: Final = 2.5
NO_VERDICTS_SHOWN: Final = 15


@dataclass(kw_only=True, slots=True)
class Options:
    """How long and how hard a run is. It ends when it has all that it ``needs``, or after ``most_seconds``."""

    seed: int
    clients: int = 3
    changers: int = 4
    connections: int = 3
    rate: float = 0.0
    pause: float = 0.0
    decisions: int = 1_000_000
    changes: int = 10_000
    seconds: float = 0.0
    most_seconds: float = 7200.0
    every_fault: bool = True
    every_change: bool = True
    at_once: int = 2
    gap: tuple[float, float] = (0.3, 2.0)
    patience: tuple[float, ...] = (5.0, 30.0)
    kinds: dict[str, int] | None = None
    progress: bool = False


@dataclass(kw_only=True, slots=True)
class Report:
    """The outcome of a run; ``str()`` prints it."""

    options: Options
    verdict: Verdict
    seconds: float
    faults: Counter[str] = field(default_factory=Counter)
    log: list[tuple[int, int, str]] = field(default_factory=list)
    restarts: int = 0
    chain: str = ""
    """The problem of the audit chain; empty: it is intact."""
    events: int = 0
    acknowledged: list[int] = field(default_factory=list)
    """When changes were acknowledged (ns of CLOCK_MONOTONIC), sorted."""

    def changed_before(self, moment: int) -> int:
        """How many changes were acknowledged before this time."""
        return bisect(self.acknowledged, moment)

    def changed_after(self, moment: int) -> int:
        return len(self.acknowledged) - self.changed_before(moment)

    def passed(self) -> bool:
        return self.verdict.passed() and not self.chain

    def __str__(self) -> str:
        verdict = self.verdict
        lines = [
            f"seed {self.options.seed}: {verdict.decisions:,} decisions, {verdict.changes:,} acknowledged changes "
            f"({verdict.doubts} attempts in doubt), {sum(self.faults.values())} faults in {self.seconds:.0f} s",
            f"  {len(verdict.violations)} violations, {len(verdict.lost)} acknowledged changes lost, "
            f"{len(verdict.twice)} done twice, audit log of {self.events:,} events "
            f"{'intact' if not self.chain else 'BROKEN: ' + self.chain}",
        ]
        lines.append(
            "  allowed by " + ", ".join(f"{node} {count:,}" for node, count in sorted(verdict.allowed.items()))
        )
        for kind, waits in sorted(verdict.waits.items()):
            lines.append(
                f"  {kind:<14} {len(waits):>7,}  acknowledged p50 {percentile(waits, 0.5) * 1e3:.1f} ms, "
                f"p99 {percentile(waits, 0.99) * 1e3:.1f} ms, longest {waits[-1] * 1e3:.0f} ms"
            )
        lines += [f"  {kind:<22} {count:>6,}" for kind, count in sorted(self.faults.items())]
        lines.append(f"  nodes that had ended by themselves and were started again: {self.restarts}")
        lines += [f"  no verdict: {what} ×{count}" for what, count in verdict.other.most_common(NO_VERDICTS_SHOWN)]
        lines += verdict.faults()
        return "\n".join(lines)


class ClientProcess:
    """A running client (``tests.nemesis.client``)."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.name = plan.name
        self.plan = plan
        file = directory / f"{plan.name}.plan"
        file.write_text(json.dumps(asdict(plan)))
        self._log = (directory / f"{plan.name}.log").open("wb")
        self._out = (directory / f"{plan.name}.out").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nemesis.client", str(file)],
            stdin=subprocess.PIPE, stdout=self._out, stderr=self._log, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        self._directory = directory

    def progress(self) -> dict[str, Any]:
        """What it has last printed; fails if it has ended."""
        assert self._process.poll() is None, f"client {self.name} ended: {self.errors()}"
        lines = (self._directory / f"{self.name}.out").read_bytes().rpartition(b"\n")[0].splitlines()
        return dict(json.loads(lines[-1])) if lines else {"decisions": 0, "changes": 0, "kinds": {}, "allowed": []}

    def errors(self) -> str:
        return (self._directory / f"{self.name}.log").read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """Let it finish what it has begun."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def finished(self) -> Record:
        code = self._process.wait(END_SECONDS)
        assert code == 0, f"client {self.name} failed: {self.errors()}"
        return Record.read(self._directory, self.name)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        self._log.close()
        self._out.close()


@contextmanager
def clients(options: Options, nodes: Sequence[Node], directory: Path) -> Iterator[list[ClientProcess]]:
    running: list[ClientProcess] = []
    try:
        for number in range(options.clients):
            plan = Plan(
                name=f"c{number}", directory=str(directory), seed=options.seed * 1000 + number,
                nodes=[(str(node.socket), str(node.data / "control.sock")) for node in nodes],
                changers=options.changers, connections=options.connections, rate=options.rate / options.clients,
                pause=options.pause, patience=options.patience,
            )  # fmt: skip
            if options.kinds is not None:
                plan.kinds = options.kinds
            running.append(ClientProcess(plan, directory))
        yield running
    finally:
        for client in running:
            client.close()


def run(
    options: Options, nodes: Sequence[Node], makers: Mapping[str, Maker], directory: Path,
) -> Report:  # fmt: skip
    """Run until there is enough, heal everything, and judge. The nodes must be ready."""
    began = time.monotonic()
    with clients(options, nodes, directory) as running:
        nemesis = Nemesis(makers, nodes, seed=options.seed, at_once=options.at_once, gap=options.gap)
        with nemesis:
            watcher = Watcher(options, running, nemesis)
            wait_until(watcher.enough, "a run that is long enough", seconds=options.most_seconds + 60.0)
        for node in nodes:
            node.wait_ready()
        for client in running:
            client.stop()
        records = [client.finished() for client in running]
    seconds = time.monotonic() - began
    events, chain = audit_log(nodes[0])
    return Report(
        options=options, verdict=judge(records, events), seconds=seconds, faults=nemesis.counts, log=nemesis.log,
        restarts=sum(node.restarts for node in nodes), chain=chain, events=len(events),
        acknowledged=sorted(
            change.end for record in records for change in record.changes if change.outcome is Outcome.ACKNOWLEDGED
        ),
    )  # fmt: skip


class Watcher:
    """Sees how a run goes on: whether there is enough of it, and how many nodes serve."""

    def __init__(self, options: Options, running: Sequence[ClientProcess], nemesis: Nemesis) -> None:
        self._options = options
        self._running = running
        self._nemesis = nemesis
        self._began = time.monotonic()
        self._printed = 0.0
        self._allowed: list[tuple[float, list[int]]] = []

    def enough(self) -> bool:
        time.sleep(0.5)
        self._nemesis.check()
        options, elapsed = self._options, time.monotonic() - self._began
        progress = [client.progress() for client in self._running]
        decisions, changes = (sum(int(each[name]) for each in progress) for name in ("decisions", "changes"))
        self._nemesis.serving = self._serving(progress)
        if options.progress and elapsed - self._printed > PRINTED_SECONDS:
            self._printed = elapsed
            print(
                f"{elapsed:6.0f} s: {decisions:,} decisions, {changes:,} changes, "
                f"{self._nemesis.counts.total()} faults, {self._nemesis.serving} nodes serve",
                flush=True,
            )
        if elapsed > options.most_seconds:
            return True
        enough = decisions >= options.decisions and changes >= options.changes and elapsed >= options.seconds
        seen = {kind for each in progress for kind in each["kinds"]}
        enough = enough and (not options.every_change or set(self._running[0].plan.kinds) <= seen)
        return enough and (self._nemesis.all_kinds_seen or not options.every_fault)

    def _serving(self, progress: Sequence[Mapping[str, Any]]) -> int:
        """How many nodes have allowed something lately. Clients report every second."""
        now = time.monotonic()
        reported = [each["allowed"] for each in progress]
        if not all(reported):
            return self._nemesis.serving
        self._allowed.append((now, [sum(counts) for counts in zip(*reported, strict=True)]))
        while len(self._allowed) > 1 and self._allowed[1][0] < now - LATELY_SECONDS:
            self._allowed.pop(0)
        before, after = self._allowed[0][1], self._allowed[-1][1]
        return sum(many > few for few, many in zip(before, after, strict=True))


def audit_log(node: Node) -> tuple[list[Event], str]:
    """Every event of a change, the oldest first, and the problem of the chain, if any."""
    exported = node.here("audit", "export", "--action", "account.")
    assert exported.returncode == 0, exported.stderr
    events = [json.loads(line) for line in exported.stdout.splitlines() if line.startswith("{")]
    verified = node.here("audit", "verify")
    return events, "" if verified.returncode == 0 else (verified.stderr or verified.stdout).strip()
