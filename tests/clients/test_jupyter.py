"""F9: jupyter-kernel-client with Jupyter server and a kernel of Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.pages import Front, Page, environment, front
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until

PAGE = Page("jupyter")


@pytest.fixture(scope="module")
def gate(gateways: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    port, directory = free_port(), tmp_path_factory.mktemp("jupyter")
    options = [
        "--IdentityProvider.token=",
        "--ServerApp.disable_check_xsrf=True",
        "--ServerApp.allow_remote_access=True",
    ]
    argv = ["jupyter", "server", "--allow-root", "--no-browser", "--ip", LOOPBACK, "--port", str(port), *options]
    with Process(argv, name="jupyter", directory=directory, environ=environment(directory)) as process:
        wait_until(lambda: accepts(port), "Jupyter listening", process=process)
        with front(gateways, PAGE, jupyter=port) as gate:
            yield gate


@pytest.fixture
def place(gate: Front, tmp_path: Path) -> Path:
    """A directory with the program of the page."""
    (tmp_path / "program.py").write_text(gate.here(PAGE.block("Run code", "python")))
    return tmp_path


def test_a_program_runs_code_in_a_kernel(gate: Front, place: Path) -> None:
    with gate.starts("Run code", place, gate.editor) as client:
        # It is not waited for, because it takes ten seconds to close its WebSocket.
        wait_until(lambda: client.output.strip(), "the result", process=client)
        gate.shows("Run code", client.output)


def test_a_viewer_runs_nothing(gate: Front, place: Path) -> None:
    gate.refuses("Run code as a viewer", place, gate.viewer)
