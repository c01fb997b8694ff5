"""Refusals of the API: every one is counted, a bounded number is logged, and the lines have the number left out."""

from __future__ import annotations

import logging

import pytest
from aiohttp.test_utils import make_mocked_request

from proxy.control.authenticate import refusal
from proxy.control.problems import refusal_of
from proxy.control.refusals import LINES_AT_ONCE, LINES_PER_SECOND, RefusalLog
from proxy.core.reasons import Reason


def test_a_flood_of_refusals_is_counted_completely_and_logged_at_a_bounded_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now, counted = [1000.0], list[str]()
    log = RefusalLog(counted.append, lambda: now[0])
    request = make_mocked_request("GET", "/api/v1/me")
    refused = refusal_of(refusal(Reason.TOKEN_UNKNOWN))
    assert refused is not None

    def said() -> list[logging.LogRecord]:
        return [record for record in caplog.records if "api request refused" in record.getMessage()]

    with caplog.at_level(logging.INFO):
        for _ in range(LINES_AT_ONCE + 50):
            log(request, refused)
        assert len(said()) == LINES_AT_ONCE
        now[0] += 1.0
        for _ in range(int(LINES_PER_SECOND) + 3):
            log(request, refused)
        assert len(said()) == LINES_AT_ONCE + int(LINES_PER_SECOND)
        now[0] += 3600.0
        for _ in range(LINES_AT_ONCE * 2):
            log(request, refused)
        assert len(said()) == LINES_AT_ONCE * 2 + int(LINES_PER_SECOND), (
            "no more lines are allowed at once than at the start"
        )
    assert counted == [Reason.TOKEN_UNKNOWN.value] * (LINES_AT_ONCE * 3 + 50 + int(LINES_PER_SECOND) + 3)
    left_out = [vars(record)["patgate_fields"].get("left_out") for record in said()]
    assert [count for count in left_out if count is not None] == [50, 3]
