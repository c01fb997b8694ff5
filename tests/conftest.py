"""Settings for all tests: in CI no test may be skipped, and hypothesis has no deadline."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.builds import problem_of_the_compiled_build

pytest_plugins = ["tests.support.plugin", "tests.support.postgres", "tests.support.dialects"]

IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

# No deadline: the machines that run this are shared, and a slow example is no defect of the property.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if IN_CI else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compiled", action="store_true", help="run against build/compiled, and on nothing else")


def pytest_configure(config: pytest.Config) -> None:
    problem = problem_of_the_compiled_build() if config.getoption("--compiled") else None
    if problem is not None:
        raise pytest.UsageError(problem)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} did not run, and in CI every test must: {call.excinfo}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped whole, and in CI every test must run"
    return report
