"""F9: skopeo with Debian's docker-registry."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml

from tests.clients.pages import EDITOR, VIEWER, Front, Page, environment, front
from tests.support.gateway import Token
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until

PAGE = Page("registry")
OCI = "application/vnd.oci.image"
LAYER = os.urandom(8 << 20)
REPOSITORIES = "docker/registry/v2/repositories"
NONE = f"sha256:{'0' * 64}"
REQUESTS = [
    ("GET", "tags/list"),
    ("GET", "manifests/1"),
    ("PUT", "manifests/1"),
    ("DELETE", f"manifests/{NONE}"),
    ("GET", f"blobs/{NONE}"),
    ("DELETE", f"blobs/{NONE}"),
    ("POST", "blobs/uploads/"),
    ("GET", "blobs/uploads/1"),
    ("PUT", "blobs/uploads/1"),
]
"""A request for each route of a repository."""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def gate(storage: Path, gateways: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    port, directory = free_port(), tmp_path_factory.mktemp("registry")
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {"addr": f"{LOOPBACK}:{port}", "secret": "of no other node"},
    }
    (directory / "config.yml").write_text(yaml.safe_dump(config))
    argv = ["docker-registry", "serve", "config.yml"]
    with Process(argv, name="registry", directory=directory, environ=environment(directory)) as process:
        wait_until(lambda: accepts(port), "the registry listening", process=process)
        with front(gateways, PAGE, registry=port, uploads=port) as gate:
            yield gate


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A user's directory with an image of one layer (OCI image layout)."""
    blobs = tmp_path / "image" / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("data.bin")
        entry.size = len(LAYER)
        tar.addfile(entry, io.BytesIO(LAYER))
    layer = archive.getvalue()
    root = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": root}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": add(json.dumps(config).encode(), "config.v1+json"),
        "layers": [add(gzip.compress(layer, 1), "layer.v1.tar+gzip")],
    }
    index = {"schemaVersion": 2, "manifests": [add(json.dumps(manifest).encode(), "manifest.v1+json")]}
    (tmp_path / "image" / "index.json").write_text(json.dumps(index))
    (tmp_path / "image" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return tmp_path


def tags(storage: Path, repository: str = "demo") -> list[str]:
    return sorted(path.name for path in storage.glob(f"{REPOSITORIES}/{repository}/_manifests/tags/*"))


def blobs(storage: Path, repository: str) -> list[str]:
    """The digests of the blobs that a repository has."""
    return sorted(f"sha256:{path.name}" for path in storage.glob(f"{REPOSITORIES}/{repository}/_layers/sha256/*"))


def refused(gate: Front, token: Token) -> list[tuple[str, str, str]]:
    """Method, path and reason of the refused requests with this token."""
    wanted = {"event": "request", "token": token.prefix}
    lines = [record for record in gate.node.records() if wanted.items() <= record.items()]
    return [(line["method"], line["path"], line["reason"]) for line in lines]


@pytest.fixture
def pushed(gate: Front, place: Path) -> None:
    """What an editor pushes is in the registry."""
    gate.succeeds("Push", place, gate.editor)


@pytest.mark.usefixtures("pushed")
def test_what_an_editor_pushes_a_viewer_pulls(gate: Front, storage: Path, place: Path) -> None:
    assert tags(storage) == ["1"]
    gate.succeeds("Pull", place, gate.viewer)
    (layer,) = json.loads((place / "image" / "index.json").read_text())["manifests"]
    digest = layer["digest"].partition(":")[2]
    assert (place / "pulled" / "blobs" / "sha256" / digest).read_bytes() == (
        place / "image" / "blobs" / "sha256" / digest
    ).read_bytes()


@pytest.mark.usefixtures("pushed")
def test_a_new_image_of_a_viewer_is_refused_at_its_first_blob(gate: Front, storage: Path, place: Path) -> None:
    viewer = gate.node.token(VIEWER, name="push")
    gate.refuses("Push as a viewer", place, viewer)
    # A mount is refused for everybody, if the client has seen the blob in another repository. Its line may be logged
    # before that of the upload.
    wait_until(lambda: {line[2] for line in refused(gate, viewer)} - {"route_denied"}, "the line of the log")
    lines = refused(gate, viewer)
    assert {line[:2] for line in lines} == {("POST", "/v2/team/web/blobs/uploads/")}
    assert {line[2] for line in lines} - {"route_denied"} == {"role_denies"}
    assert not (storage / REPOSITORIES / "team").joinpath("web").exists()


@pytest.mark.usefixtures("pushed")
def test_a_new_tag_of_a_viewer_is_refused_in_words_that_skopeo_shows(gate: Front, storage: Path, place: Path) -> None:
    gate.refuses("Tag as a viewer", place, gate.viewer)
    assert tags(storage) == ["1"]


@pytest.mark.usefixtures("pushed")
def test_a_copy_between_repositories_is_uploaded_after_its_mount_is_refused(
    gate: Front, storage: Path, place: Path
) -> None:
    """The token has scopes for the two repositories, and none for the login."""
    scopes = ["images/demo:read", "images/team/app/web:read", "images/team/app/web:push"]
    token = gate.node.token(EDITOR, name="copy", scopes=scopes)
    gate.succeeds("Push to a repository of several segments", place, token)
    assert tags(storage, "team/app/web") == ["1"]
    mount = ("POST", "/v2/team/app/web/blobs/uploads/", "route_denied")
    wait_until(lambda: mount in refused(gate, token), "the line of the log")


@pytest.mark.usefixtures("pushed")
def test_a_scope_covers_one_repository_of_any_depth(gate: Front) -> None:
    for repository, others in (
        ("one", ["one/two", "two"]),
        ("one/two", ["one", "two", "one/two/three", "two/two"]),
        ("one/two/three", ["one", "one/two", "one/two/two", "two/two/three"]),
    ):
        scopes = [f"images/{repository}:push", f"images/{repository}:read", f"images/{repository}:delete"]
        token = gate.node.token(EDITOR, name=repository, scopes=scopes)
        with gate.node.connect() as connection:
            for each in (repository, *others):
                answers = [
                    connection.request(method, f"/v2/{each}/{path}", headers=token.bearer).status
                    for method, path in REQUESTS
                ]
                assert all((status == 403) is (each in others) for status in answers), (repository, each, answers)


@pytest.mark.usefixtures("pushed")
@pytest.mark.parametrize("form", [None, "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"])
def test_no_blob_is_mounted_from_a_repository_that_the_token_cannot_read(
    gate: Front, storage: Path, form: str | None
) -> None:
    digest = blobs(storage, "demo")[0]
    token = gate.node.token(EDITOR, name="mine", scopes=["images/mine:push", "images/mine:read"])
    names = {"mount": digest, "from": "demo"}
    if form is None:
        target, body = f"?{urlencode(names)}", ""
    elif form.startswith("multipart"):
        target = ""
        parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{names[name]}\r\n' for name in names]
        body = "".join([*parts, "--b--\r\n"])
    else:
        target, body = "", urlencode(names)
    headers = token.bearer | ({"Content-Type": form} if form else {})
    with gate.node.connect() as connection:
        answer = connection.request("POST", f"/v2/mine/blobs/uploads/{target}", headers=headers, body=body.encode())
        read = connection.request("GET", f"/v2/mine/blobs/{digest}", headers=token.bearer)
    assert answer.status == (202 if form else 403), "an upload has begun, or the mount is refused"
    assert read.status == 404
    assert blobs(storage, "mine") == []


@pytest.mark.usefixtures("pushed")
def test_a_pull_without_a_token_is_refused_in_words_that_skopeo_shows(gate: Front, place: Path) -> None:
    gate.refuses("Pull without a token", place)
