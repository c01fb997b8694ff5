"""F9: twine and pip with pypiserver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.clients.pages import EDITOR, Front, Page, environment, front
from tests.e2e.test_pip import WHEEL, build_wheel
from tests.support.backends import program
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until

PAGE = Page("pypi")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's directory: empty."""
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="module")
def gate(packages: Path, gateways: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    port, directory = free_port(), tmp_path_factory.mktemp("pypiserver")
    options = ["--interface", LOOPBACK, "--port", str(port), "--disable-fallback", "--passwords", ".", "--authenticate"]
    argv = [program("pypi-server"), "run", *options, ".", str(packages)]
    with Process(argv, name="pypiserver", directory=directory, environ=environment(directory)) as process:
        wait_until(lambda: accepts(port), "pypiserver listening", process=process)
        with front(gateways, PAGE, index=port) as gate:
            yield gate


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The directory of a project that has been built."""
    (tmp_path / "dist").mkdir()
    build_wheel(tmp_path / "dist")
    return tmp_path


def test_what_an_editor_uploads_a_viewer_installs(gate: Front, packages: Path, place: Path) -> None:
    gate.succeeds("Upload", place, gate.editor)
    assert (packages / WHEEL).read_bytes() == (place / "dist" / WHEEL).read_bytes()
    gate.succeeds("Install", place, gate.viewer)
    assert (place / "site" / "tinything.py").is_file()


def test_who_may_upload_may_also_remove(gate: Front, packages: Path, place: Path) -> None:
    """The page says so: what pypiserver does is in the body."""
    (packages / "other-1.0.tar.gz").write_bytes(b"")
    token = gate.node.token(EDITOR, name="upload", scopes=["packages:upload"])
    body = urlencode({":action": "remove_pkg", "name": "other", "version": "1.0"}).encode()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    with gate.node.connect() as connection:
        assert connection.request("POST", "/", headers=gate.viewer.bearer | form, body=body).status == 403
        assert (packages / "other-1.0.tar.gz").exists()
        assert connection.request("POST", "/", headers=token.bearer | form, body=body).status == 200
    assert not (packages / "other-1.0.tar.gz").exists()


def test_an_upload_of_a_viewer_is_refused_in_words_that_twine_shows(gate: Front, packages: Path, place: Path) -> None:
    before = [*packages.iterdir()]
    (place / "dist" / WHEEL).rename(place / "dist" / WHEEL.replace("1.0", "1.1"))
    gate.refuses("Upload as a viewer", place, gate.viewer)
    assert [*packages.iterdir()] == before


def test_without_a_token_pip_gets_nothing(gate: Front, place: Path) -> None:
    gate.refuses("Install without a token", place)
    assert not [*place.glob("*.whl")]
