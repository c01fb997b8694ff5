"""The plot of README.md: what was measured, drawn to scale, legible in light and dark."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import pytest

from bench.report import plot, results
from bench.report.figures import Figure, Part, Spread, Table
from bench.report.results import Result
from bench.scenarios.cpu_per_request import PEERS

SVG = "{http://www.w3.org/2000/svg}"


def result(*rows: tuple[str, str], ratio: float = 1.1) -> Result:
    figure = Figure(
        what="CPU per authenticated request, ratio to nginx",
        spread=Spread(median=ratio, low=ratio, high=ratio),
        bound=1.25,
    )
    table = Table(head=("one worker", "CPU per request, µs"), rows=rows)
    return Result(taken="2026-01-02", machine={"processor": "one"}, part=Part(figures=(figure,), tables=(table,)))


def drawn(of: Result) -> Element:
    return fromstring(plot.picture(of))


def texts(picture: Element) -> list[str]:
    return [element.text or "" for element in picture.iter(f"{SVG}text")]


def bars(picture: Element) -> list[float]:
    return [float(each.attrib["width"]) for each in picture.iter(f"{SVG}rect") if each.get("class") in ("ours", "peer")]


def test_the_published_plot_is_what_its_results_render_to() -> None:
    assert plot.PICTURE.read_text("utf-8") == plot.picture(results.load()["cpu"])


def test_the_published_plot_has_every_peer_and_says_whether_the_bound_is_met() -> None:
    published = results.load()["cpu"]
    said = texts(fromstring(plot.PICTURE.read_text("utf-8")))
    assert set(PEERS) <= set(said)
    figure = published.part.figures[0]
    assert figure.what.endswith("ratio to nginx")
    verdict = "missed" if "missed" in figure.verdict.value else "met"
    assert any(f"our bound of 1.25 is {verdict}" in text for text in said)


def test_bars_are_as_long_as_their_costs_and_the_cheapest_is_first() -> None:
    picture = drawn(result(("slow", "1,000"), ("patgate", "100 (90–110)"), ("nginx", "50.0 (40.0–60.0)")))
    first, second, third = bars(picture)
    assert second / first == pytest.approx(2, rel=0.01)
    assert third / first == pytest.approx(20, rel=0.01)
    names = [text for text in texts(picture) if text in ("slow", "patgate", "nginx")]
    assert names == ["nginx", "patgate", "slow"]


@pytest.mark.parametrize(("ratio", "verdict"), [(1.25, "met"), (1.26, "missed")])
def test_our_bar_says_what_became_of_its_bound(ratio: float, verdict: str) -> None:
    of = result(("nginx", "10.0"), ("patgate", "20.0"), ratio=ratio)
    assert f"20 = {ratio} × nginx; our bound of 1.25 is {verdict}" in texts(drawn(of))


def test_a_cost_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="no cost"):
        plot.picture(result(("nginx", "?")))


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_and_bars_stand_out_from_the_background(scheme: int) -> None:
    panel = plot.COLOURS["panel"][scheme]
    assert all(contrast(plot.COLOURS[name][scheme], panel) >= 4.5 for name in plot.TEXTS)
    assert all(contrast(plot.COLOURS[name][scheme], panel) >= 3 for name in ("ours", "peer", "span"))


def test_the_dark_colours_count_in_dark_surroundings_only() -> None:
    light, _, dark = plot.picture(result(("nginx", "10.0"))).partition("@media (prefers-color-scheme: dark)")
    for name, colours in plot.COLOURS.items():
        assert re.search(rf"\.{name} {{ \w+: {colours[0]} }}", light)
        assert re.search(rf"\.{name} {{ \w+: {colours[1]} }}", dark)


def test_no_text_runs_out_of_the_picture() -> None:
    """A letter is reckoned at six tenths of its height, which is wide."""
    picture = fromstring(plot.PICTURE.read_text("utf-8"))
    width = float(picture.attrib["width"])
    for text in picture.iter(f"{SVG}text"):
        long = len(text.text or "") * float(text.attrib["font-size"]) * 0.6
        left = float(text.attrib["x"]) - (long if text.get("text-anchor") == "end" else 0)
        assert left >= 0, text.text
        assert left + long <= width, text.text


def test_results_without_the_cost_leave_the_plot_alone(tmp_path: Path) -> None:
    file = tmp_path / "plot.svg"
    plot.write({"latency": result(("nginx", "10.0"))}, file)
    assert not file.exists()
    plot.write({"cpu": replace(result(("nginx", "10.0")), taken="2026-03-04")}, file)
    assert "measured 2026-03-04" in file.read_text("utf-8")
