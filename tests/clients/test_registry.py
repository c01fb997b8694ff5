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

import pytest
import yaml

from tests.clients.pages import Front, Page, environment, front
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until

PAGE = Page("registry")
OCI = "application/vnd.oci.image"
LAYER = os.urandom(8 << 20)


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
        with front(gateways, PAGE, registry=port) as gate:
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


def tags(storage: Path) -> list[str]:
    return sorted(path.name for path in storage.glob("docker/registry/v2/repositories/demo/_manifests/tags/*"))


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
def test_a_push_of_a_viewer_is_refused_in_words_that_skopeo_shows(gate: Front, storage: Path, place: Path) -> None:
    gate.refuses("Push as a viewer", place, gate.viewer)
    assert tags(storage) == ["1"]


@pytest.mark.usefixtures("pushed")
def test_a_pull_without_a_token_is_refused_in_words_that_skopeo_shows(gate: Front, place: Path) -> None:
    gate.refuses("Pull without a token", place)
