"""F9: cargo with a sparse index and crates that nginx serves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.pages import EDITOR, Front, Page, environment, front
from tests.support.backends import program
from tests.support.pool import Pool
from tests.support.process import Process, accepts, free_port, run, wait_until

PAGE = Page("cargo")
CRATE = '[package]\nname = "{}"\nversion = "1.0.0"\nedition = "2021"\n'
USES = '[dependencies]\nhello = { version = "1", registry = "acme" }\n'

# A worker process of root's nginx would have another user, who cannot enter the directories of the tests.
NGINX = """\
user root;
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr;
events {{ }}
http {{
access_log {directory}/access.log;
client_body_temp_path {directory}/body;
proxy_temp_path {directory}/proxy;
fastcgi_temp_path {directory}/fastcgi;
uwsgi_temp_path {directory}/uwsgi;
scgi_temp_path {directory}/scgi;
{server}}}
"""


@pytest.fixture(autouse=True)
def _toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cargo of rustup finds its toolchains below the home of the user who runs the tests."""
    monkeypatch.setenv("RUSTUP_HOME", os.environ.get("RUSTUP_HOME", str(Path.home() / ".rustup")))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that nginx serves."""
    return tmp_path_factory.mktemp("crates")


@pytest.fixture(scope="module")
def gate(root: Path, gateways: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    port, directory = free_port(), tmp_path_factory.mktemp("nginx")
    server = PAGE.block("The server", "nginx").replace("/srv/crates", str(root)).replace(":3000", f":{port}")
    (directory / "nginx.conf").write_text(NGINX.format(directory=directory, server=server))
    argv = [program("nginx"), "-c", str(directory / "nginx.conf"), "-p", str(directory)]
    with Process(argv, name="nginx", directory=directory, environ=environment(directory)) as process:
        wait_until(lambda: accepts(port), "nginx listening", process=process)
        with front(gateways, PAGE, crates=port) as gate:
            (root / "index").mkdir()
            (root / "index" / "config.json").write_text(gate.here(PAGE.block("The server", "json")))
            yield gate


@pytest.fixture(scope="module")
def added(gate: Front, root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The crate ``hello`` is in the registry."""
    place = tmp_path_factory.mktemp("hello")
    project(place, CRATE.format("hello"))
    script = PAGE.commands("Add a crate").replace("/srv/crates", str(root))
    environ = environment(place) | {"RUSTUP_HOME": os.environ.get("RUSTUP_HOME", str(Path.home() / ".rustup"))}
    done = run(["bash", "-euc", script], cwd=place, environ=environ)
    assert done.returncode == 0, done.stderr


def project(place: Path, manifest: str) -> None:
    (place / "src").mkdir()
    (place / "src" / "lib.rs").write_text("pub fn hello() {}\n")
    (place / "Cargo.toml").write_text(manifest)


@pytest.fixture
def place(gate: Front, added: None, tmp_path: Path) -> Path:
    """A user's directory with a project that uses ``hello``, and the settings of the page."""
    project(tmp_path, CRATE.format("app") + USES)
    (tmp_path / ".cargo").mkdir()
    (tmp_path / ".cargo" / "config.toml").write_text(gate.here(PAGE.block("Settings of cargo", "toml")))
    return tmp_path


def fetched(place: Path) -> list[str]:
    return [path.name for path in place.glob(".cargo/registry/cache/*/*")]


def test_a_viewer_fetches_a_crate_with_a_token_that_has_no_scheme(gate: Front, place: Path) -> None:
    gate.shows("Fetch", gate.succeeds("Fetch", place, gate.viewer))
    assert fetched(place) == ["hello-1.0.0.crate"]


def test_a_scope_covers_one_crate_and_its_entry_in_the_index(gate: Front, place: Path) -> None:
    token = gate.node.token(EDITOR, name="one", scopes=["registry:login", "crates/hello:read"])
    gate.succeeds("Fetch", place, token)
    assert fetched(place) == ["hello-1.0.0.crate"]
    with gate.node.connect() as connection:
        for path in (
            "/index/ot/he/other",
            "/crates/other/1.0.0/download",
            "/index/3/a/abc",
            "/index/2/ab",
            "/index/1/a",
        ):
            answer = connection.request("GET", path, headers={"Authorization": token.value})
            assert b"reason: scope_denies" in answer.body, path


def test_a_token_for_another_crate_is_refused_in_words_that_cargo_shows(gate: Front, place: Path) -> None:
    token = gate.node.token(EDITOR, name="other", scopes=["registry:login", "crates/other:read"])
    gate.refuses("Fetch with a token for another crate", place, token)
    assert fetched(place) == []


def test_a_revoked_token_fetches_nothing(gate: Front, place: Path) -> None:
    token = gate.node.token(EDITOR, name="revoked")
    gate.node.cli("token", "revoke", token.id)
    gate.refuses("Fetch with a revoked token", place, token)
    assert fetched(place) == []
