"""F9: cadaver and curl with wsgidav."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.pages import EDITOR, Front, Page, environment, front
from tests.support.backends import program
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until

PAGE = Page("webdav")
REPORT = "Everything went well.\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's directory."""
    root = tmp_path_factory.mktemp("files")
    for folder in ("shared", "archive"):
        (root / folder).mkdir()
    return root


@pytest.fixture(scope="module")
def gate(files: Path, gateways: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    port, directory = free_port(), tmp_path_factory.mktemp("wsgidav")
    options = ["--host", LOOPBACK, "--port", str(port), "--root", str(files), "--auth", "anonymous", "--no-config"]
    argv = [program("wsgidav"), "--server", "gunicorn", *options]
    with Process(argv, name="wsgidav", directory=directory, environ=environment(directory)) as process:
        wait_until(lambda: accepts(port), "wsgidav listening", process=process)
        with front(gateways, PAGE, files=port) as gate:
            yield gate


@pytest.fixture
def place(files: Path, tmp_path: Path) -> Path:
    """A user's directory with a report, and the server's files as after the work of an editor."""
    (tmp_path / "report.txt").write_text(REPORT)
    (files / "shared" / "final.txt").write_text(REPORT)
    return tmp_path


def listing(files: Path) -> set[str]:
    return {path.relative_to(files).as_posix() for path in files.rglob("*")}


def test_an_editor_writes_locks_copies_and_moves(gate: Front, files: Path, place: Path) -> None:
    (files / "shared" / "final.txt").unlink()
    output = gate.succeeds("Work with files", place, gate.editor)
    assert "failed" not in output, output
    assert listing(files) == {"archive", "shared", "shared/old", "shared/old/report.txt", "shared/final.txt"}
    assert (files / "shared" / "final.txt").read_text() == REPORT


def test_a_copy_to_a_folder_without_write_access_is_refused(gate: Front, files: Path, place: Path) -> None:
    before = listing(files)
    done = gate.types("Copy into a folder without write access", place, gate.editor)
    gate.shows("Copy into a folder without write access", done.stdout)
    assert listing(files) == before


def test_a_copy_onto_a_folder_replaces_it(gate: Front, files: Path, place: Path) -> None:
    (files / "shared" / "full").mkdir()
    (files / "shared" / "full" / "kept.txt").write_text(REPORT)
    (files / "shared" / "empty").mkdir()
    token = gate.node.token(EDITOR, name="update", scopes=["shared:read", "shared:update"])
    headers = token.bearer | {"Destination": "/shared/full"}
    with gate.node.connect() as connection:
        assert connection.request("COPY", "/shared/empty", headers=headers).status == 204
        assert connection.request("DELETE", "/shared/full", headers=token.bearer).status == 403
    assert listing(files) >= {"shared/full"}
    assert "shared/full/kept.txt" not in listing(files)
    for name in ("full", "empty"):
        (files / "shared" / name).rmdir()


def test_a_path_in_if_needs_read_and_a_lock_token_counts_for_its_own_path(
    gate: Front, files: Path, place: Path
) -> None:
    (files / "archive" / "old.txt").write_text(REPORT)
    token = gate.node.token(EDITOR, name="shared", scopes=["shared:update"])
    lock = b'<lockinfo xmlns="DAV:"><lockscope><exclusive/></lockscope><locktype><write/></locktype></lockinfo>'
    with gate.node.connect() as connection:
        named = {"If": "<http://gateway/archive/old.txt> (<opaquelocktoken:1>)"}
        answer = connection.request("PUT", "/shared/final.txt", headers=token.bearer | named, body=b"x")
        assert (answer.status, answer.json()["reason"]) == (403, "scope_denies")
        locked = connection.request("LOCK", "/shared/final.txt", headers=gate.editor.bearer, body=lock)
        assert locked.status == 200, locked
        held = {"Lock-Token": locked.get("Lock-Token") or ""}
        (files / "shared" / "other.txt").write_text(REPORT)
        assert connection.request("UNLOCK", "/shared/other.txt", headers=token.bearer | held).status == 409
        assert connection.request("UNLOCK", "/shared/final.txt", headers=token.bearer | held).status == 204
    (files / "shared" / "other.txt").unlink()
    (files / "archive" / "old.txt").unlink()


def test_a_viewer_writes_nothing(gate: Front, files: Path, place: Path) -> None:
    before = listing(files)
    done = gate.types("Write as a viewer", place, gate.viewer)
    gate.shows("Write as a viewer", done.stdout)
    assert listing(files) == before
