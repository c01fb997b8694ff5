"""Every unexpected exception is one redacted, bounded log line and counted, wherever it is caught."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.observe import defects, logs
from proxy.observe.log_quota import KIND_BYTES, REFILL_SECONDS
from proxy.observe.metrics import DEFECTS
from tests.support.process import HANGS_SECONDS

ROOT = Path(__file__).resolve().parents[3]
TOKEN = f"acme_pat_0123456789ab_{'S' * 32}CRC123"


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    # A flush waits for all lines, however busy the machine is.
    monkeypatch.setattr(logs, "_EXIT_SECONDS", HANGS_SECONDS)
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions
    out = io.StringIO()
    logs.configure(process="test", stream=out)
    yield out
    root.handlers[0].close()
    root.handlers[:], logging.raiseExceptions = before[0], before[2]
    root.setLevel(before[1])


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    logs.flush()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def counted() -> float:
    return defects.snapshot().counters.get(DEFECTS.name, {}).get((), 0.0)


def fail(_: object = None) -> None:
    raise RuntimeError(f"no place for {TOKEN}")


async def test_an_exception_that_reaches_the_event_loop_is_one_line_without_secrets(stream: io.StringIO) -> None:
    before = counted()
    loop = asyncio.get_running_loop()
    defects.install(loop)
    loop.call_soon(fail)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (line,) = lines(stream)
    assert (line["level"], line["event"], line["logger"]) == ("error", "defect", "defects")
    assert line["exception"] == "RuntimeError: no place for acme_pat_0123456789ab"
    assert line["calls"][0].startswith("fail (test_defects.py:")
    assert counted() == before + 1


async def test_defects_write_no_more_than_the_quota_of_one_kind_of_line(stream: io.StringIO) -> None:
    defects.install(asyncio.get_running_loop())
    context = {"message": "Fatal error: protocol.data_received() call failed.", "exception": RuntimeError("x" * 3000)}
    began = time.monotonic()
    for _ in range(20_000):
        asyncio.get_running_loop().call_exception_handler(context)
    refilled = KIND_BYTES * (time.monotonic() - began) / REFILL_SECONDS  # much, where the machine is busy
    logs.flush()
    assert KIND_BYTES / 2 < len(stream.getvalue()) < KIND_BYTES + refilled + 10_000
    *written, last = lines(stream)
    assert last["event"] == "log lines left out"
    assert len(written) + sum(line.get("left_out", 0) for line in written) + last["count"] == 20_000


async def test_a_connection_that_the_network_breaks_is_no_defect(stream: io.StringIO) -> None:
    before = counted()
    defects.install(asyncio.get_running_loop())
    context = {"message": "Fatal error on transport", "exception": TimeoutError(), "transport": object()}
    asyncio.get_running_loop().call_exception_handler(context)
    assert lines(stream) == []
    assert counted() == before


async def test_a_task_that_is_not_awaited_is_reported_when_it_fails(stream: io.StringIO) -> None:
    async def failing() -> None:
        fail()

    task = asyncio.create_task(failing(), name="left alone")
    task.add_done_callback(defects.noted)
    await asyncio.wait([task])
    await asyncio.sleep(0)
    (line,) = lines(stream)
    assert (line["what"], line["task"]) == ("a task failed", "left alone")


SCRIPT = """
import sys, threading, warnings
from proxy.observe import defects, logs
logs.configure(process="test")
defects.hook_process()
TOKEN = sys.argv[1]
class Bad:
    def __del__(self):
        raise RuntimeError(TOKEN)
def fail():
    raise RuntimeError(TOKEN)
bad = Bad()
del bad
warnings.warn(TOKEN)
thread = threading.Thread(target=fail, name="worker")
thread.start()
thread.join()
fail()
"""


def test_exceptions_and_warnings_that_python_would_print_are_logged() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, TOKEN], capture_output=True, text=True, cwd=ROOT, timeout=HANGS_SECONDS
    )
    assert done.returncode == 1
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line.get("what", line["logger"]) for line in found] == [
        "an exception could not be raised",
        "py.warnings",
        "a thread ended",
        "the process ends",
    ]
    assert TOKEN not in done.stderr
    assert done.stdout == ""
