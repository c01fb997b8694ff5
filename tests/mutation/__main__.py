"""``make mutate``: a sample of mutants by seed, against the tests nearest to each module."""

from __future__ import annotations

import argparse
import difflib
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from queue import Queue

from tests.mutation import table
from tests.mutation.operators import OPERATORS, Mutant, differs, mutants
from tests.mutation.tree import Outcome, Tree, Verdict

_GRACE = 30.0
_LONGEST = 1800.0
_SLOWER = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A mutant of a module, and the text of the module."""

    path: str
    source: str
    mutant: Mutant

    @property
    def package(self) -> str:
        return self.path.split("/")[1]

    @property
    def key(self) -> tuple[str, str]:
        """The original and the mutated line, as in ``table.EQUIVALENT``."""
        before, after = self.source.splitlines(), self.mutant.apply(self.source).splitlines()
        changed = next(
            (number for number, (one, other) in enumerate(zip(before, after, strict=False)) if one != other),
            min(len(before), len(after)) - 1,
        )
        return before[changed].strip(), after[changed].strip()

    def equivalent(self) -> bool:
        return self.key in table.EQUIVALENT.get(self.path, {})

    def diff(self) -> str:
        lines = difflib.unified_diff(
            self.source.splitlines(), self.mutant.apply(self.source).splitlines(),
            f"{self.path}:{self.mutant.line} ({self.mutant.operator})", "mutant", n=2, lineterm="",
        )  # fmt: skip
        return "\n".join(lines)


@dataclass(kw_only=True, slots=True)
class Rates:
    """The numbers of killed and of all mutants, by package."""

    killed: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)

    def note(self, package: str, killed: bool) -> None:
        self.tried[package] += 1
        self.killed[package] += killed

    def total(self) -> float:
        return sum(self.killed.values()) / max(1, sum(self.tried.values()))

    def text(self) -> str:
        rows = [f"{name} {self.killed[name]}/{count}" for name, count in sorted(self.tried.items())]
        whole = f"{sum(self.killed.values())} of {sum(self.tried.values())} mutants killed ({self.total():.1%})"
        return f"{whole}: {', '.join(rows)}"


def cases(paths: Sequence[str], root: Path = table.ROOT) -> list[Case]:
    """Every mutant of these modules."""
    found = []
    for path in paths:
        source = (root / path).read_text()
        found += [Case(path=path, source=source, mutant=one) for one in mutants(source)]
    return found


class Clean:
    """The result of a stage of a module's tests without a mutant: its duration, and the tests that fail."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, ...], tuple[list[str], float]] = {}
        self._locks: defaultdict[tuple[str, ...], threading.Lock] = defaultdict(threading.Lock)

    def of(self, tree: Tree, tests: Sequence[str]) -> tuple[list[str], float]:
        """The usable tests and their time limit in seconds; a test module that fails twice is left out."""
        key = tuple(tests)
        with self._locks[key]:
            if key not in self._held:
                self._held[key] = self._run(tree, list(tests))
            return self._held[key]

    def _run(self, tree: Tree, tests: list[str]) -> tuple[list[str], float]:
        suspects: Counter[str] = Counter()
        while tests:
            began = time.monotonic()
            verdict = tree.run(tests, _LONGEST)
            if verdict.outcome is Outcome.PASSED:
                return tests, _GRACE + _SLOWER * (time.monotonic() - began)
            place = verdict.test.partition(" ")[2].partition("::")[0].partition(" ")[0]
            suspects[place] += 1
            if suspects[place] < 2 and place in tests:
                continue
            print(f"left out, because it fails without a mutant: {verdict.test}\n{verdict.output[-1500:]}", flush=True)
            tests = [test for test in tests if test != place] if place in tests else []
        return [], 0.0


def tried(tree: Tree, case: Case, clean: Clean, most: int) -> Verdict:
    """Run the nearest tests first, and the next stage only if these do not kill the mutant."""
    for stage in table.stages(case.path, tree.root)[:most]:
        tests, seconds = clean.of(tree, stage)
        if not tests:
            continue
        tree.write(case.path, case.mutant.apply(case.source))
        try:
            verdict = tree.run(tests, seconds)
        finally:
            tree.write(case.path, case.source)
        if verdict.outcome is not Outcome.PASSED:
            return verdict
    return Verdict(outcome=Outcome.PASSED)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    made.add_argument("where", nargs="*", help="packages or modules, such as proxy/core; all of the table without")
    made.add_argument("--seed", type=int, default=None, help="repeats a sample; printed at its beginning")
    made.add_argument("--sample", type=int, default=100, help="how many mutants; 0 for all")
    made.add_argument("--jobs", type=int, default=1, help="how many at a time")
    made.add_argument("--stages", type=int, default=3, help="1: a module's own tests, 2: and those that import it")
    made.add_argument("--rate", type=float, default=0.95, help="exit 1 below it")
    made.add_argument("--operator", action="append", choices=OPERATORS, help="only this one; may be repeated")
    made.add_argument("--line", type=int, help="only mutants of this line")
    made.add_argument("--list", action="store_true", help="print the sample and run nothing")
    made.add_argument("--verbose", action="store_true", help="print what killed each mutant as well")
    return made


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        paths = table.paths(options.where)
    except KeyError as error:
        print(f"no package or module of the table: {error.args[0]}", file=sys.stderr)
        return 2
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    every = cases(paths)
    chosen = [
        case
        for case in every
        if (not options.operator or case.mutant.operator in options.operator)
        and (options.line is None or case.mutant.line == options.line)
    ]
    random.Random(seed).shuffle(chosen)
    good = (case for case in chosen if differs(case.mutant, case.source) and not case.equivalent())
    chosen = list(islice(good, options.sample or None))
    print(f"mutation: {len(chosen)} of {len(every)} mutants of {len(paths)} modules, --seed {seed}", flush=True)
    if options.list:
        print("\n".join(case.diff() for case in chosen))
        return 0
    rates = run(chosen, jobs=options.jobs, stages=options.stages, verbose=options.verbose)
    print(rates.text())
    return int(rates.total() < options.rate)


def run(chosen: Sequence[Case], *, jobs: int, stages: int, verbose: bool) -> Rates:
    """Try every case, ``jobs`` at a time, each in a separate copy; prints survivors when they are found."""
    rates, clean, printing = Rates(), Clean(), threading.Lock()
    with tempfile.TemporaryDirectory(prefix="patgate-mutation-") as directory:
        trees: Queue[Tree] = Queue()
        for number in range(jobs):
            place = Path(directory) / str(number)
            place.mkdir()
            trees.put(Tree(place))

        def one(case: Case) -> None:
            tree = trees.get()
            try:
                verdict = tried(tree, case, clean, stages)
            finally:
                trees.put(tree)
            with printing:
                rates.note(case.package, verdict.outcome is not Outcome.PASSED)
                if verdict.outcome is Outcome.PASSED:
                    print(f"SURVIVED\n{case.diff()}\n", flush=True)
                elif verbose:
                    print(f"killed {_place(case)}: {verdict.test or verdict.outcome}", flush=True)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, chosen))
    return rates


def _place(case: Case) -> str:
    before, after = case.key
    return f"{case.path}:{case.mutant.line} ({case.mutant.operator}) {before!r} -> {after!r}"


def unknown(equivalents: Mapping[str, Mapping[tuple[str, str], str]] = table.EQUIVALENT) -> list[str]:
    """Entries of the table of equivalents that are not mutants (any more)."""
    stale = []
    for path, entries in equivalents.items():
        source = (table.ROOT / path).read_text()
        made = {Case(path=path, source=source, mutant=one).key for one in mutants(source)}
        stale += [f"{path}: {key}" for key in entries if key not in made]
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
