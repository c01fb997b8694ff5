"""F9: git and git-lfs with Apache, git http-backend and giftless."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import pwd
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.clients.pages import VIEWER, Front, Page, environment, front
from tests.support.backends import program
from tests.support.gateway import Token
from tests.support.pathservers import APACHE_MODULES
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, run, wait_until

PAGE = Page("git")
LARGE = 5 << 20
LFS = "/git/demo.git/info/lfs/objects"

APACHE = """\
ServerRoot {directory}
ServerName localhost
PidFile {directory}/apache.pid
Mutex pthread
# Only root's Apache changes its user.
User nobody
Group #{nobody}
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule alias_module {modules}/mod_alias.so
LoadModule headers_module {modules}/mod_headers.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
LoadModule env_module {modules}/mod_env.so
LoadModule setenvif_module {modules}/mod_setenvif.so
LoadModule cgid_module {modules}/mod_cgid.so
ScriptSock {root}/cgid.sock
StartServers 1
ServerLimit 1
ThreadsPerChild 16
MaxRequestWorkers 16
KeepAliveTimeout 600
ErrorLog {directory}/error.log
"""


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """The directory of one bare, empty repository; Apache's user can enter and write it."""
    with TemporaryDirectory(prefix="patgate-git-") as name:
        root = Path(name)
        git(root, "init", "--bare", "--quiet", "--initial-branch=main", "demo.git")
        if os.getuid() == 0:
            for path in (root, *root.rglob("*")):
                os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
        yield root


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the LFS server."""
    return tmp_path_factory.mktemp("giftless")


@pytest.fixture(scope="module")
def gate(root: Path, objects: Path, gateways: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    web, lfs, directory = free_port(), free_port(), tmp_path_factory.mktemp("apache")
    values = {"directory": directory, "root": root, "port": web, "modules": APACHE_MODULES}
    text = APACHE.format(nobody=pwd.getpwnam("nobody").pw_gid, **values)
    own = PAGE.block("The web server", "apache").replace("/srv/git", str(root)).replace(":3001", f":{lfs}")
    (directory / "apache.conf").write_text(text + own)
    key = secrets.token_hex(32)
    (objects / "giftless.yaml").write_text(PAGE.block("The LFS server", "yaml"))
    (objects / "giftless.key").write_text(key)
    apache = [program("apache2"), "-f", str(directory / "apache.conf"), "-D", "FOREGROUND"]
    giftless = ["waitress-serve", "--listen", f"{LOOPBACK}:{lfs}", "giftless.wsgi_entrypoint:app"]
    with ExitStack() as stack:
        for argv, place, port, settings in (
            (apache, directory, web, {"LFS_TOKEN": jwt({"scopes": ["obj:git/*"]}, key)}),
            (giftless, objects, lfs, {"GIFTLESS_CONFIG_FILE": "giftless.yaml"}),
        ):
            process = Process(argv, name=f"server-{port}", directory=place, environ=environment(place) | settings)
            stack.enter_context(process)
            wait_until(lambda port=port: accepts(port), "a server listening", process=process)  # type: ignore[misc]
        yield stack.enter_context(front(gateways, PAGE, git=web))


def jwt(claims: dict[str, object], key: str) -> str:
    """A JSON Web Token signed with HS256 (RFC 7519)."""

    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    parts = [{"alg": "HS256", "typ": "JWT"}, claims | {"exp": 1 << 32}]
    text = ".".join(encoded(json.dumps(part).encode()) for part in parts)
    return f"{text}.{encoded(hmac.digest(key.encode(), text.encode(), 'sha256'))}"


def git(place: Path, *arguments: str) -> str:
    done = run([shutil.which("git") or "git", *arguments], cwd=place, environ=environment(place))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def head(root: Path) -> str:
    return git(root, "-c", "safe.directory=*", "--git-dir", "demo.git", "rev-parse", "main")


@pytest.fixture(scope="module")
def pushed(gate: Front, root: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of the large file that an editor pushed."""
    place = tmp_path_factory.mktemp("editor")
    gate.succeeds("Settings of git", place, gate.editor)
    gate.succeeds("Push", place, gate.editor)
    return (place / "demo" / "large.bin").read_bytes()


@pytest.fixture
def place(gate: Front, pushed: bytes, tmp_path: Path) -> Path:
    """The directory of a viewer with a clone."""
    gate.succeeds("Settings of git", tmp_path, gate.viewer)
    gate.succeeds("Clone", tmp_path, gate.viewer)
    return tmp_path


def test_a_viewer_clones_the_large_file_that_an_editor_pushed(pushed: bytes, objects: Path, place: Path) -> None:
    assert len(pushed) == LARGE
    assert (place / "copy" / "large.bin").read_bytes() == pushed
    assert LARGE in [path.stat().st_size for path in objects.rglob("*") if path.is_file()], "it is kept by LFS"


def test_a_push_of_a_viewer_is_refused_at_its_first_request(gate: Front, root: Path, place: Path) -> None:
    before, viewer = head(root), gate.node.token(VIEWER, name="push")
    gate.succeeds("Settings of git", place, viewer)
    gate.refuses("Push as a viewer", place, viewer)
    assert head(root) == before
    # The only worker logs its requests in their order: with the line of this one, those of the push are there.
    with gate.node.connect() as connection:
        assert connection.request("PUT", f"{LFS}/storage/{'0' * 64}", headers=viewer.bearer).status == 403
    wait_until(lambda: f"{LFS}/storage/{'0' * 64}" in denied(gate, viewer), "the lines of the log")
    assert denied(gate, viewer)[:-1] == ["/git/demo.git/info/refs"]


def denied(gate: Front, token: Token) -> list[str]:
    """The paths of the requests with this token that the log says a role denied."""
    wanted = {"token": token.prefix, "reason": "role_denies"}
    return [record["path"] for record in gate.node.records() if wanted.items() <= record.items()]


def test_an_upload_of_a_viewer_is_refused_in_words_that_git_lfs_shows(gate: Front, objects: Path, place: Path) -> None:
    before = sorted(objects.rglob("*"))
    gate.refuses("Upload a large file as a viewer", place, gate.viewer)
    assert sorted(path for path in objects.rglob("*") if path.suffix != ".log") == [
        path for path in before if path.suffix != ".log"
    ]


def test_the_addresses_of_objects_are_below_the_repository_on_the_gateway(gate: Front, pushed: bytes) -> None:
    """A viewer gets those for an upload too, because the batch says in its body what it is for."""
    objects = [{"oid": hashlib.sha256(pushed).hexdigest(), "size": len(pushed)}, {"oid": "0" * 64, "size": 1}]
    headers = gate.viewer.bearer | {"Content-Type": "application/vnd.git-lfs+json"}
    with gate.node.connect() as connection:
        for operation in ("download", "upload"):
            body = json.dumps({"operation": operation, "transfers": ["basic"], "objects": objects}).encode()
            answer = connection.request("POST", f"{LFS}/batch", headers=headers, body=body)
            addresses = [
                action["href"] for each in answer.json()["objects"] for action in each.get("actions", {}).values()
            ]
            assert addresses
            assert all(address.startswith(f"http://gateway{LFS}/storage/") for address in addresses), addresses
        for method, path in (("PUT", f"{LFS}/storage/{'0' * 64}"), ("POST", f"{LFS}/storage/verify")):
            assert connection.request(method, path, headers=headers, body=b"x").json()["reason"] == "role_denies"
