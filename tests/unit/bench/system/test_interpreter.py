"""Figures come from an optimised interpreter, or are labelled and not published."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import __main__
from bench.errors import BenchError
from bench.report import markdown
from bench.system import interpreter
from bench.system.interpreter import Interpreter

DEBIAN = "'--enable-shared' '--prefix=/usr' '--with-computed-gotos'"


def described(configuration: str, package: str | None = None) -> Interpreter:
    return interpreter.describe(
        version="CPython 3.11.2", executable=Path("/usr/bin/python3.11"), configuration=configuration,
        owned_by=lambda _: package,
    )  # fmt: skip


def test_an_interpreter_says_itself_that_it_was_built_with_optimisation() -> None:
    found = described("'--prefix=/opt' '--enable-optimizations' '--with-lto'")
    assert found.optimised
    assert found.facts() == {
        "Python": "CPython 3.11.2, configured with --enable-optimizations",
        "Python optimised": "yes",
    }


def test_a_distribution_s_interpreter_is_optimised_though_its_configuration_does_not_say_so() -> None:
    found = described(DEBIAN, "python3.11-minimal 3.11.2-6")
    assert found.optimised
    assert "python3.11-minimal 3.11.2-6" in found.builder


def test_another_interpreter_is_not_optimised_and_its_figures_are_refused_for_publication() -> None:
    found = described(DEBIAN)
    assert not found.optimised
    assert found.facts()["Python optimised"].startswith("NO")
    with pytest.raises(BenchError, match="make bench"):
        interpreter.require_optimised(found)
    interpreter.require_optimised(described(DEBIAN, "python3.11-minimal 3.11.2-6"))


def test_a_file_of_no_package_has_no_owner(tmp_path: Path) -> None:
    mine = tmp_path / "python3"
    mine.touch()
    assert interpreter.owner(mine) is None


def test_an_unoptimised_interpreter_writes_no_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interpreter, "running", lambda: described(DEBIAN))
    assert __main__.main(["cpu", "--write"]) == 1
    assert "not written into docs/benchmarks.md" in capsys.readouterr().err


def test_figures_of_an_unoptimised_interpreter_are_labelled_first() -> None:
    slow, fast = described(DEBIAN).facts(), described("--enable-optimizations").facts()
    assert markdown.warning(["cpu"], fast) == ""
    assert "`cpu`, `idle`" in markdown.warning(["cpu", "idle"], slow)
    # Results from before it was asked say nothing of it.
    assert "CPython 3.11.7" in markdown.warning(["cpu"], {"Python": "CPython 3.11.7, configured without"})


def test_this_process_has_an_interpreter_with_a_version() -> None:
    assert interpreter.running().version.endswith(".".join(map(str, sys.version_info[:3])))
