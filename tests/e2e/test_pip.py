"""pip against a real index server, with the token in the URL."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.backends import program
from tests.support.gateway import Patgate, Token
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, run, wait_until
from tests.support.rawhttp import Connection
from tests.support.tap import Tap

WHEEL = "tinything-1.0-py3-none-any.whl"
OWNER = "eve@example.org"

ROUTES = [
    {"path": "/simple/", "upstream": "index", "entity": "packages", "operations": {"GET": "list"}},
    {"path": "/simple/{id}/", "upstream": "index", "entity": "packages", "operations": {"GET": "read"}},
    {"path": "/packages/{id}", "upstream": "index", "entity": "packages", "operations": {"GET": "read"}},
]


def build_wheel(directory: Path) -> bytes:
    """The smallest wheel that pip accepts (PEP 427)."""
    files = {
        "tinything.py": b"SIZE = 'tiny'\n",
        "tinything-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n",
        "tinything-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "tinything-1.0.dist-info/RECORD"
    lines = []
    with zipfile.ZipFile(directory / WHEEL, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(content)}")
        wheel.writestr(record, "\n".join([*lines, f"{record},,", ""]))
    return (directory / WHEEL).read_bytes()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("packages")
    build_wheel(directory)
    return directory


@pytest.fixture(scope="module")
def index(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    argv = [
        program("pypi-server"),
        "run",
        "--interface",
        LOOPBACK,
        "--port",
        str(port),
        "--disable-fallback",
        str(packages),
    ]
    with Process(argv, name="pypiserver", directory=tmp_path_factory.mktemp("index")) as process:
        wait_until(lambda: accepts(port), "pypiserver listening", process=process)
        yield port


@pytest.fixture(scope="module")
def node(index: int, gateways: Pool) -> Iterator[Patgate]:
    with Tap(index, "pypiserver") as tap:
        config = {
            "upstreams": {"index": {"servers": [tap.url]}},
            "roles": {"reader": ["packages:read", "packages:list"]},
            "routes": ROUTES,
        }
        with gateways.lend(config) as gateway:
            gateway.add_user(OWNER, "reader")
            yield gateway


def download(node: Patgate, token: Token | None, directory: Path) -> CompletedProcess[str]:
    login = f"__token__:{token.value}@" if token else ""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environ |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return run(
        [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--retries", "0"),
            *("--index-url", f"http://{login}{LOOPBACK}:{node.port}/simple/", "--trusted-host", LOOPBACK),
            *("--dest", str(directory), "tinything"),
        ],
        cwd=directory,
        environ=environ,
    )


def test_pip_downloads_with_the_token_in_the_url(node: Patgate, packages: Path, tmp_path: Path) -> None:
    done = download(node, node.token(OWNER), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / WHEEL).read_bytes() == (packages / WHEEL).read_bytes()


def test_a_revoked_token_downloads_nothing(node: Patgate, tmp_path: Path) -> None:
    token = node.token(OWNER, name="short-lived")
    assert download(node, token, tmp_path).returncode == 0
    (tmp_path / WHEEL).unlink()
    node.cli("token", "revoke", token.id)
    done = download(node, token, tmp_path)
    assert done.returncode != 0
    assert "401" in done.stdout + done.stderr, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_token_pip_is_challenged(node: Patgate, tmp_path: Path) -> None:
    with Connection(node.port) as connection:
        response = connection.request("GET", "/simple/tinything/")
    assert response.status == 401
    assert any(challenge.startswith("Basic ") for challenge in response.all("WWW-Authenticate"))
    done = download(node, None, tmp_path)
    assert done.returncode != 0
    assert list(tmp_path.iterdir()) == []
