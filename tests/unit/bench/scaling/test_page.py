"""docs/scaling.md is what the stored measurements give, and one deployment can be simulated by itself."""

from __future__ import annotations

import pytest

from bench.scaling import measurements, page
from bench.scaling.__main__ import main


def test_the_published_page_is_what_the_stored_measurements_give() -> None:
    assert page.DOCUMENT.read_text("utf-8") == page.render(measurements.load())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.012"), (3.04, "3"), (9.96, "10"), (54.4, "54"), (8133, "8,100")],
)
def test_what_is_simulated_has_two_digits(value: float, text: str) -> None:
    assert page.significant(value) == text


def test_a_deployment_is_simulated_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--nodes", "5", "--seconds", "1", "--changes", "20", "--cores", "2"]) == 0
    printed = capsys.readouterr().out
    assert "| acknowledged p50 |" in printed
    assert "| keeps up | yes |" in printed
