"""Results as Markdown: printed, and written between their markers in docs/benchmarks.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from bench import coldstart, memory
from bench.coldstart import Coldstart
from bench.compare import PEERS, REFERENCE, Comparison
from bench.errors import BenchError
from bench.load import CONNECTIONS
from bench.memory import Footprint, Memory
from bench.workload import PATHS

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "benchmarks.md"
SECTIONS: Final = ("compare", "coldstart", "memory")

_PREFACE: Final = """\
# Benchmarks

The figures below are written by the commands that measure them; nothing here is edited by hand. Each says on which
machine it was taken. What is measured, and how, stands in the docstrings of `bench/`.

    make bench                            # CPU per request beside other proxies
    python -m bench coldstart --write     # start with a full store
    python -m bench memory --write        # a worker with a full cache
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine_lines(facts: Mapping[str, str]) -> str:
    """The machine and the versions, as a list."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def comparison_text(result: Comparison) -> str:
    """The table of a comparison, with what each peer does and what a reader must know to believe it."""
    rows = []
    for name, samples in result.samples.items():
        cost, ratio = result.cost(name), result.ratio(name)
        rate = median(sample.driven.rate for sample in samples)
        busy = median(sample.busy for sample in samples)
        waited = median(sample.waited for sample in samples)
        costs = f"{cost.median:.1f} ({cost.low:.1f}–{cost.high:.1f})"
        ratios = f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
        rows.append([name, costs, ratios, f"{rate:,.0f}", f"{busy:.0%}", f"{waited:.0%}"])
    ratio_to = f"ratio to {REFERENCE}"
    head = ["one worker, one core", "CPU per request, µs", ratio_to, "requests/s", "on its core", "waited for it"]
    beside = [
        f"{name}'s {part}, beside it: {median(one.beside_us[part] for one in samples):.2f} µs of CPU per request."
        for name, samples in result.samples.items()
        for part in samples[0].beside_us
    ]
    where = "the same core" if result.together else "another core"
    rounds = len(result.samples[REFERENCE])
    notes = [
        f"Median of {rounds} interleaved rounds of {result.seconds:g} s each (smallest–largest); "
        "ratios are taken within a round.",
        f"Every request is different: {PATHS:,} paths, varied queries, a `traceparent` of its own, {result.tokens:,} "
        f"tokens; {CONNECTIONS} kept-alive connections, no pipelining. A round with one wrong answer gives no figure.",
        "CPU is the worker's own, user and kernel, from `/proc/<pid>/task/*/schedstat`; the load generator (wrk) "
        f"and the backend (nginx `return 200`, HTTP/1.1 kept alive) run on {where}.",
        *[PEERS[name].does[0].upper() + PEERS[name].does[1:] for name in result.samples],
        *beside,
    ]
    return _table(head, rows) + "\n\n" + "\n".join(f"- {note}" for note in notes)


def coldstart_text(result: Coldstart) -> str:
    """The times from exec to ready."""
    times = result.seconds
    store = f"{result.entries:,} users and {result.entries:,} tokens"
    span = f"{min(times):.2f}–{max(times):.2f} s"
    row = [store, f"{median(times):.2f} s", span, f"{len(times)}", f"{coldstart.BOUND_SECONDS:g} s"]
    return _table(["from executing `patgate serve` to /readyz 200", "median", "range", "starts", "bound"], [row])


def _weight(what: str, footprint: Footprint, bound: str = "") -> list[str]:
    return [what, f"{footprint.rss:.0f} MB", f"{footprint.uss:.0f} MB", bound]


def memory_text(result: Memory) -> str:
    """A worker's memory with an empty and a full cache."""
    rows = [
        _weight("a worker before its first request", result.empty),
        _weight(f"with {result.entries:,} cached grants", result.full, f"{memory.BOUND_MB:g} MB"),
        _weight("the authority then", result.authority),
    ]
    return _table(["memory", "RSS", "USS", "bound"], rows) + f"\n\n- One cached grant: {result.grant_bytes:,.0f} bytes."


def write(section: str, text: str, document: Path = DOCUMENT) -> None:
    """Replace what stands between the markers of ``section``, or append it with its markers; the rest stays untouched.

    Raises BenchError when the document has one marker of the section without the other.
    """
    begin, end = f"<!-- bench:{section} -->", f"<!-- /bench:{section} -->"
    held = document.read_text() if document.exists() else _PREFACE
    block = f"{begin}\n{text}\n{end}"
    before, opened, rest = held.partition(begin)
    _, closed, after = rest.partition(end)
    if bool(opened) != bool(closed) or (not opened and end in held):
        raise BenchError(f"{document.name} has one marker of {section} without the other.")
    document.parent.mkdir(exist_ok=True)
    document.write_text(before + block + after if opened else f"{held.rstrip()}\n\n{block}\n")
