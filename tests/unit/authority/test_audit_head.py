"""Heads of the audit log and problems at its end are logged once each."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest

from proxy.authority.audit_head import AuditHeadLogger
from proxy.store.audit.chain import Mark


@dataclass
class Log:
    """An audit log in memory, with only its head and the problem at its end."""

    audit_head: Mark
    problem: str | None = None
    store_id: str = "s1"

    async def audit_tail_problem(self) -> str | None:
        return self.problem


@pytest.fixture(autouse=True)
def _everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "patgate")


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, Any]]:
    """Event and head or problem of each log record since the last call."""
    found = []
    for record in caplog.records:
        fields = record.__dict__["patgate_fields"]
        assert fields["store"] == "s1"
        found.append((record.getMessage(), fields.get("head") or fields.get("problem")))
    caplog.clear()
    return found


async def test_each_head_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    log = Log(Mark(n=1, hash="a"))
    logger = AuditHeadLogger(log)
    for _ in range(3):
        await logger.check()
    assert logged(caplog) == [("audit log head", "1:a")]
    log.audit_head = Mark(n=7, hash="b")
    await logger.check()
    logger.log_head()
    assert logged(caplog) == [("audit log head", "7:b")]
    log.audit_head = Mark(n=7, hash="c")
    logger.log_head()
    assert logged(caplog) == [("audit log head", "7:c")]


async def test_each_problem_is_logged_once_and_kept_until_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    log = Log(Mark(n=1, hash="a"), problem="cut")
    logger = AuditHeadLogger(log)
    for _ in range(2):
        await logger.check()
        assert logger.problem == "cut"
    assert logged(caplog) == [("the audit log is not whole", "cut"), ("audit log head", "1:a")]
    log.problem = None
    await logger.check()
    assert (logger.problem, logged(caplog)) == (None, [])
    log.problem = "cut"
    await logger.check()
    assert logged(caplog) == [("the audit log is not whole", "cut")]
