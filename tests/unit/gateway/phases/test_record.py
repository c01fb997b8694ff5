"""The record phase: the log is bounded in bytes for every kind and number of refusals."""

from __future__ import annotations

import logging

import pytest

from proxy.core.reasons import Reason
from proxy.gateway.exchange import Exchange
from proxy.gateway.phases.record import ExchangeRecorder
from proxy.gateway.telemetry.access_log import SWEEPS_PER_MINUTE
from proxy.observe.logs import compose, get_logger, render

MEGABYTE = 1_000_000


def refused(path: bytes) -> Exchange:
    exchange = Exchange(None, 0, b"0123456789abcdef00000001")
    exchange.method, exchange.path, exchange.reason = b"G" * 40, path, Reason.REQUEST_MALFORMED
    return exchange


def noticed(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The log lines as a process writes them, with the fields that it adds."""
    frame = {"process": "gateway-10", "pid": 4_194_304, "logger": "gateway", "worker": 10}
    return [
        render(compose("warning", record.message, frame | record.patgate_fields, now=1.7e9))  # type: ignore[attr-defined]
        for record in caplog.records
    ]


@pytest.mark.parametrize("byte", [b"a", b"\xff", b"\x1b", b""])
@pytest.mark.parametrize("workers", [1, 2, 16])
def test_a_minute_of_refusals_writes_at_most_a_megabyte_of_log(
    byte: bytes, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[bytes] = []
    recorder = ExchangeRecorder(
        (), get_logger("test"), prefix_of=lambda x: "acme_pat_123456789012", workers=workers, write=lines.append
    )
    with caplog.at_level(logging.INFO, logger="patgate"):
        for _ in range(SWEEPS_PER_MINUTE):
            for _ in range(100):
                recorder.record(refused(b"/" + byte * 300), 10**9)
            recorder.flush()
    notices = noticed(caplog)
    assert (sum(map(len, lines)) + sum(len(line) + 1 for line in notices)) * workers <= MEGABYTE
    assert sum('"requests not logged"' in line for line in notices) >= 1
    assert b"".join(lines).count(b'"event":"request"') >= 5


def test_a_quiet_worker_logs_every_refusal(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[bytes] = []
    recorder = ExchangeRecorder((), get_logger("test"), prefix_of=lambda x: None, workers=2, write=lines.append)
    with caplog.at_level(logging.INFO, logger="patgate"):
        for _ in range(SWEEPS_PER_MINUTE):
            for _ in range(5):
                recorder.record(refused(b"/nowhere"), 10**9)
            recorder.flush()
    assert b"".join(lines).count(b"\n") == 5 * SWEEPS_PER_MINUTE
    assert not caplog.records
