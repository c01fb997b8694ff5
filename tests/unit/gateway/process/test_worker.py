"""The repeated tasks of a worker continue after one of them fails."""

from __future__ import annotations

import asyncio
import logging

import pytest

from proxy.gateway.process.worker import every
from tests.unit.gateway.kit import until


async def test_a_sweep_that_fails_is_reported_and_the_next_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    sweeps = 0

    def sweep() -> None:
        nonlocal sweeps
        sweeps += 1
        if sweeps == 2:
            raise RuntimeError("one sweep failed")

    with caplog.at_level(logging.ERROR, logger="patgate"):
        sweeper = asyncio.create_task(every(0.001, sweep), name="sweep")
        await until(lambda: sweeps >= 5 or sweeper.done())
        assert not sweeper.done()
        sweeper.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sweeper
    [record] = caplog.records
    assert record.getMessage() == "defect"
    fields = record.__dict__["patgate_fields"]
    assert (fields["what"], fields["exception"]) == ("a sweep failed", "RuntimeError: one sweep failed")
