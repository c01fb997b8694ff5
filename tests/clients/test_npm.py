"""F9: npm with verdaccio."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.pages import EDITOR, VIEWER, Front, Page, environment, front
from tests.support.pool import Pool
from tests.support.process import Process, accepts, free_port, wait_until

PAGE = Page("npm")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which verdaccio keeps its packages."""
    return tmp_path_factory.mktemp("verdaccio")


@pytest.fixture(scope="module")
def gate(server: Path, gateways: Pool) -> Iterator[Front]:
    port = free_port()
    (server / "verdaccio.yaml").write_text(PAGE.block("The registry", "yaml").replace(":3000", f":{port}"))
    argv = ["verdaccio", "--config", "verdaccio.yaml"]
    with Process(argv, name="verdaccio", directory=server, environ=environment(server)) as process:
        wait_until(lambda: accepts(port), "verdaccio listening", process=process)
        with front(gateways, PAGE, verdaccio=port) as gate:
            yield gate


@pytest.fixture
def place(gate: Front, tmp_path: Path) -> Path:
    """A user's directory with the project of a package; its npm has the settings of the page."""
    package = {"name": "@acme/tool", "version": "1.0.0", "main": "tool.js", "files": ["tool.js"]}
    (tmp_path / "package.json").write_text(json.dumps(package))
    (tmp_path / "tool.js").write_text("module.exports = 42;\n")
    (tmp_path / ".npmrc").write_text("audit=false\nfund=false\nupdate-notifier=false\ncolor=false\nfetch-retries=0\n")
    gate.succeeds("Settings of npm", tmp_path, gate.editor)
    return tmp_path


@pytest.fixture
def elsewhere(place: Path) -> Path:
    """The same user's directory as that of another project."""
    for name in ("package.json", "tool.js"):
        (place / name).unlink()
    return place


def published(server: Path) -> list[str]:
    return sorted(path.name for path in server.glob("storage/@acme/tool/*.tgz"))


def test_a_package_that_an_editor_publishes_is_installed_by_a_viewer(gate: Front, server: Path, place: Path) -> None:
    gate.shows("Publish", gate.succeeds("Publish", place, gate.editor))
    assert published(server) == ["tool-1.0.0.tgz"]
    for name in ("package.json", "tool.js"):
        (place / name).unlink()
    gate.shows("Install", gate.succeeds("Install", place, gate.viewer))
    assert (place / "node_modules" / "@acme" / "tool" / "tool.js").read_text() == "module.exports = 42;\n"


def test_one_scope_covers_what_is_known_of_a_package_and_the_package_itself(gate: Front, place: Path) -> None:
    gate.types("Publish", place, gate.editor)
    scoped = gate.node.token(VIEWER, name="scoped", scopes=["packages/@acme/tool:read"])
    other = gate.node.token(VIEWER, name="other", scopes=["packages/@acme/other:read"])
    paths = ("/npm/@acme%2ftool", "/npm/@acme/tool/-/tool-1.0.0.tgz")
    for token, status in ((scoped, 200), (other, 403)):
        with gate.node.connect() as connection:
            answers = [connection.request("GET", path, headers=token.bearer) for path in paths]
        assert [answer.status for answer in answers] == [status, status]


def test_a_tag_of_a_package_needs_the_permission_to_publish_it(gate: Front, place: Path) -> None:
    gate.types("Publish", place, gate.editor)
    gate.refuses("Tag as a viewer", place, gate.viewer)
    gate.shows("Tag", gate.succeeds("Tag", place, gate.editor))


def test_a_document_that_names_another_package_changes_that_of_its_path_only(
    gate: Front, server: Path, place: Path
) -> None:
    gate.types("Publish", place, gate.editor)
    before = {path: path.read_bytes() for path in server.glob("storage/@acme/tool/*")}
    token = gate.node.token(EDITOR, name="mine", scopes=["packages/@acme/mine:publish"])
    version = {"name": "@acme/tool", "version": "6.6.6", "dist": {"tarball": "http://x/@acme/tool/-/tool-6.6.6.tgz"}}
    document = {
        "_id": "@acme/tool",
        "name": "@acme/tool",
        "dist-tags": {"latest": "6.6.6"},
        "versions": {"6.6.6": version},
        "_attachments": {"../tool/tool-6.6.6.tgz": {"data": "", "length": 0}},
    }
    headers = token.bearer | {"Content-Type": "application/json"}
    with gate.node.connect() as connection:
        answer = connection.request("PUT", "/npm/@acme%2fmine", headers=headers, body=json.dumps(document).encode())
        assert answer.status in (201, 400, 403, 422), answer
    assert {path: path.read_bytes() for path in server.glob("storage/@acme/tool/*")} == before


def test_a_publish_of_a_viewer_is_refused_in_words_that_npm_shows(gate: Front, server: Path, place: Path) -> None:
    before = published(server)
    (place / "package.json").write_text((place / "package.json").read_text().replace("1.0.0", "1.1.0"))
    gate.refuses("Publish as a viewer", place, gate.viewer)
    assert published(server) == before


def test_a_revoked_token_installs_nothing(gate: Front, elsewhere: Path) -> None:
    token = gate.node.token(VIEWER, name="revoked")
    gate.node.cli("token", "revoke", token.id)
    gate.refuses("Install with a revoked token", elsewhere, token)
    assert not (elsewhere / "node_modules").exists()
