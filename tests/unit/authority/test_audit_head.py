"""The head of the audit log is in the process's log, each once, and what is wrong with its end."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest

from proxy.authority.audit_head import HeadWatch
from proxy.store.audit.chain import Mark


@dataclass
class Log:
    """An audit log in memory, of which only the end counts."""

    audit_head: Mark
    problem: str | None = None
    store_id: str = "s1"

    async def audit_tail_problem(self) -> str | None:
        return self.problem


@pytest.fixture(autouse=True)
def _everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "patgate")


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, Any]]:
    """What was logged since the last look, and about what."""
    found = []
    for record in caplog.records:
        fields = record.__dict__["patgate_fields"]
        assert fields["store"] == "s1"
        found.append((record.getMessage(), fields.get("head") or fields.get("problem")))
    caplog.clear()
    return found


async def test_each_head_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    log = Log(Mark(n=1, hash="a"))
    watch = HeadWatch(log)
    for _ in range(3):
        await watch.look()
    assert said(caplog) == [("audit log head", "1:a")]
    log.audit_head = Mark(n=7, hash="b")
    await watch.look()
    watch.say()
    assert said(caplog) == [("audit log head", "7:b")]
    log.audit_head = Mark(n=7, hash="c")
    watch.say()
    assert said(caplog) == [("audit log head", "7:c")]


async def test_each_problem_is_said_once_and_stays_until_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    log = Log(Mark(n=1, hash="a"), problem="cut")
    watch = HeadWatch(log)
    for _ in range(2):
        await watch.look()
        assert watch.problem == "cut"
    assert said(caplog) == [("the audit log is not whole", "cut"), ("audit log head", "1:a")]
    log.problem = None
    await watch.look()
    assert (watch.problem, said(caplog)) == (None, [])
    log.problem = "cut"
    await watch.look()
    assert said(caplog) == [("the audit log is not whole", "cut")]
