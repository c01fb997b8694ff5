"""F9: curl with a FastAPI application on uvicorn."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.pages import VIEWER, Front, Page, environment, front
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until

PAGE = Page("fastapi")
MEBIBYTE = 1 << 20
MORE_MEMORY = 16 * MEBIBYTE
"""The buffers of one request, and the growth of a Python heap in use; a 64th of the body."""


@pytest.fixture(scope="module")
def gate(gateways: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    port, directory = free_port(), tmp_path_factory.mktemp("fastapi")
    (directory / "application.py").write_text(PAGE.block("The application", "python"))
    argv = ["uvicorn", "application:app", "--host", LOOPBACK, "--port", str(port)]
    with Process(argv, name="uvicorn", directory=directory, environ=environment(directory)) as process:
        wait_until(lambda: accepts(port), "uvicorn listening", process=process)
        with front(gateways, PAGE, watched=False, app=port) as gate:
            yield gate


def resident(pid: int, field: str) -> int:
    """A size in bytes from proc(5): ``VmRSS`` now, ``VmHWM`` the largest so far."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def test_a_gigabyte_is_uploaded_in_constant_memory(gate: Front, tmp_path: Path) -> None:
    (worker,) = gate.node.all_workers()
    gate.types("Upload as a viewer", tmp_path, gate.editor)
    Path(f"/proc/{worker}/clear_refs").write_text("5")  # resets VmHWM
    before = resident(worker, "VmRSS")
    output = gate.succeeds("Upload a gigabyte", tmp_path, gate.editor)
    gate.shows("Upload a gigabyte", output)
    assert resident(worker, "VmHWM") - before < MORE_MEMORY


@pytest.mark.alone
def test_events_arrive_while_the_job_runs_and_the_stream_ends_with_the_token(gate: Front, tmp_path: Path) -> None:
    token = gate.node.token(VIEWER, name="stream")
    with gate.starts("Follow a job", tmp_path, token) as client:
        wait_until(lambda: "data: 2" in client.output, "the third event", process=client)
        gate.shows("Follow a job", client.output)
        with gate.node.control_socket() as control:
            control.revoke(token)
        revoked = time.monotonic()
        assert client.wait() != 0
        assert time.monotonic() - revoked < 2


def test_an_upload_of_a_viewer_is_refused(gate: Front, tmp_path: Path) -> None:
    gate.refuses("Upload as a viewer", tmp_path, gate.viewer)
