"""F9: jupyter-kernel-client with Jupyter server and a kernel of Python."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.pages import Front, Page, environment, front
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until
from tests.support.rawhttp import Connection

PAGE = Page("jupyter")
OWN_TOKEN = secrets.token_hex(24)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of Jupyter, with the file that patgate reads its token from."""
    directory = tmp_path_factory.mktemp("jupyter")
    (directory / "jupyter-token").write_text(OWN_TOKEN)
    (directory / "jupyter-token").chmod(0o600)
    return directory


@pytest.fixture(scope="module")
def jupyter(directory: Path) -> Iterator[int]:
    """The port of Jupyter."""
    port = free_port()
    options = ["--ip", LOOPBACK, "--port", str(port), "--ServerApp.allow_remote_access=True"]
    argv = ["jupyter", "server", "--allow-root", "--no-browser", *options]
    environ = environment(directory) | {"JUPYTER_TOKEN": OWN_TOKEN}
    with Process(argv, name="jupyter", directory=directory, environ=environ) as process:
        wait_until(lambda: accepts(port), "Jupyter listening", process=process)
        yield port


@pytest.fixture(scope="module")
def gate(gateways: Pool, directory: Path, jupyter: int) -> Iterator[Front]:
    with front(gateways, PAGE, directory=directory, jupyter=jupyter) as gate:
        yield gate


@pytest.fixture
def place(gate: Front, tmp_path: Path) -> Path:
    """A directory with the program of the page."""
    (tmp_path / "program.py").write_text(gate.here(PAGE.block("Run code", "python")))
    return tmp_path


def test_a_program_runs_code_in_a_kernel(gate: Front, place: Path) -> None:
    with gate.starts("Run code", place, gate.editor) as client:
        # It is not waited for, because it takes ten seconds to close its WebSocket.
        wait_until(lambda: "42" in client.output, "the result", process=client)
        gate.shows("Run code", client.output)


def test_jupyter_has_a_login_of_its_own_that_a_client_cannot_use(gate: Front, jupyter: int) -> None:
    with Connection(jupyter) as behind:
        assert behind.request("GET", "/api/kernels", host=LOOPBACK).status == 403
    with gate.node.connect() as connection:
        own = {"Authorization": f"token {OWN_TOKEN}"}
        assert connection.request("GET", "/api/kernels", headers=own).status == 401


def test_a_viewer_runs_nothing(gate: Front, place: Path) -> None:
    gate.refuses("Run code as a viewer", place, gate.viewer)
