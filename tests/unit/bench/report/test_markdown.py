"""Figures beside their bounds and aims, and the document that is rendered from every part's last result."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.__main__ import SUBCOMMANDS
from bench.report import markdown, results
from bench.report.figures import Better, Figure, Part, Spread, Table, Verdict, percentile, spread
from bench.scenarios.cpu_per_request import PROMISED, REFERENCE

MACHINE = {"processor": "one, 2 cores", "kernel": "Linux"}


def figure(
    value: float, *, bound: float | None = 2.0, aim: float | None = 1.5, better: Better = Better.LOWER
) -> Figure:
    held = Spread(median=value, low=value - 0.25, high=value + 0.25)
    return Figure(what=f"cost {value}", spread=held, bound=bound, aim=aim, unit=" s", better=better)


def result(name: str, machine: dict[str, str] | None = None) -> results.Result:
    part = Part(figures=(figure(1.75),), tables=(Table(head=("", "n"), rows=((name, "1"),)),), notes=(f"Of {name}.",))
    return results.Result(taken="2026-01-02", machine=machine or MACHINE, part=part)


@pytest.mark.parametrize(
    ("value", "better", "verdict"),
    [
        (1.5, Better.LOWER, Verdict.AIM),
        (1.51, Better.LOWER, Verdict.BOUND),
        (2.0, Better.LOWER, Verdict.BOUND),
        (2.01, Better.LOWER, Verdict.MISSED),
        (2.0, Better.HIGHER, Verdict.AIM),
        (1.49, Better.HIGHER, Verdict.MISSED),
    ],
)
def test_a_figure_is_compared_with_its_bound_and_its_aim(value: float, better: Better, verdict: Verdict) -> None:
    bound, aim = (2.0, 1.5) if better is Better.LOWER else (1.5, 2.0)
    assert figure(value, bound=bound, aim=aim, better=better).verdict is verdict


def test_a_figure_may_have_a_bound_only_or_nothing_to_meet() -> None:
    assert figure(1.9, aim=None).verdict is Verdict.BOUND
    assert figure(2.1, aim=None).verdict is Verdict.MISSED
    assert figure(2.1, bound=None, aim=None).verdict is Verdict.NONE


def test_a_percentile_is_the_nearest_rank() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0, 0.001)] == [50, 99, 100, 1]
    assert percentile([7.0], 0.99) == 7
    assert spread([3, 1, 2]) == Spread(median=2, low=1, high=3)


def test_a_row_shows_the_figure_its_span_and_both_limits() -> None:
    assert markdown.figures_text([figure(1.75)]).splitlines()[-1] == (
        "| cost 1.75 | 1.75 s (1.50–2) | ≤ 2 s | ≤ 1.50 s | bound met |"
    )
    more = figure(1.25, bound=2.0, aim=3.0, better=Better.HIGHER)
    assert markdown.figures_text([more]).splitlines()[-1].endswith("| ≥ 2 s | ≥ 3 s | **missed** |")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1.254, "1.25"), (52.04, "52.0"), (123.4, "123"), (16.0, "16"), (19045.2, "19,045")]
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert markdown.number(value) == text


def test_a_new_result_replaces_its_own_part_and_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert results.load(file) == {}
    results.save("cpu", result("old"), file)
    results.save("latency", result("other"), file)
    assert results.save("cpu", result("new"), file) == {"cpu": result("new"), "latency": result("other")}
    assert results.load(file) == {"cpu": result("new"), "latency": result("other")}


def test_the_document_has_every_figure_first_and_the_machines_last() -> None:
    titles = {"cpu": "CPU", "latency": "Latency", "idle": "Idle"}
    elsewhere = {"processor": "another"}
    text = markdown.document_text({"latency": result("late", elsewhere), "cpu": result("fast")}, titles)
    assert text.index("| cost 1.75 |") < text.index("## CPU") < text.index("## Latency") < text.index("## Machines")
    assert "Idle" not in text
    assert "`cpu` (2026-01-02):\n\n- processor: one, 2 cores" in text
    assert "`latency` (2026-01-02):\n\n- processor: another" in text


def test_the_published_document_equals_its_rendered_results() -> None:
    titles = {name: one.title for name, one in SUBCOMMANDS.items()}
    assert markdown.DOCUMENT.read_text("utf-8") == markdown.document_text(results.load(), titles)


def test_f7_the_published_cost_of_a_request_is_that_of_what_operators_run_and_below_twice_nginx() -> None:
    """F7: ``make bench`` measures the compiled package on an optimised interpreter, beside nginx on one machine.

    The bound of 1.25 is missed where it was measured last, and the page says so; this holds what is reached.
    """
    published = results.load()["cpu"]
    assert published.machine["Python optimised"] == "yes"
    assert "(compiled)" in published.machine["patgate"]
    figures = {figure.what: figure for figure in published.part.figures}
    ratios = {name: figures[f"CPU per authenticated request, ratio to {name}"] for name in PROMISED}
    assert ratios[REFERENCE].spread.median < 2
    assert {name for name, ratio in ratios.items() if ratio.verdict is Verdict.MISSED} <= {REFERENCE}
