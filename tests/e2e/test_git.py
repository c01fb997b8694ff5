"""The git client against git's smart-HTTP server, with a token as the password."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.cgi import CgiServer
from tests.support.gateway import Patgate, Token, clean_environ
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, run
from tests.support.rawhttp import Connection
from tests.support.tap import Tap

MEBIBYTE = 1 << 20
FILES = 50  # of one mebibyte each, random so that git cannot compress them

ROUTES = [
    {
        "path": "/git/{id}/info/refs",
        "upstream": "git",
        "entity": "repos",
        "query": {"service": "git-receive-pack"},
        "operations": {"GET": "update"},
    },
    {"path": "/git/{id}/info/refs", "upstream": "git", "entity": "repos", "operations": {"GET": "read"}},
    {"path": "/git/{id}/git-upload-pack", "upstream": "git", "entity": "repos", "operations": {"POST": "read"}},
    {"path": "/git/{id}/git-receive-pack", "upstream": "git", "entity": "repos", "operations": {"POST": "update"}},
]
ROLES = {"editor": ["repos:*"], "viewer": ["repos:read"]}


def git(*arguments: str, cwd: Path, seconds: float = 120) -> CompletedProcess[str]:
    """Run git without the machine's configuration, credential helpers and prompts."""
    environ = clean_environ(
        {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_AUTHOR_NAME": "Eve",
            "GIT_AUTHOR_EMAIL": "eve@example.org",
            "GIT_COMMITTER_NAME": "Eve",
            "GIT_COMMITTER_EMAIL": "eve@example.org",
        }
    )
    return run(["git", *arguments], cwd=cwd, environ=environ, seconds=seconds)


def succeed(*arguments: str, cwd: Path) -> str:
    done = git(*arguments, cwd=cwd)
    assert done.returncode == 0, f"git {arguments[0]}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def project_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's directory: one bare, empty repository."""
    root = tmp_path_factory.mktemp("git-server")
    (root / "git").mkdir()
    succeed("init", "--bare", "--quiet", "--initial-branch=main", "git/demo.git", cwd=root)
    return root


@pytest.fixture(scope="module")
def server(project_root: Path) -> Iterator[CgiServer]:
    environ = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": str(project_root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    program = shutil.which("git")
    assert program, "git is not installed"
    with CgiServer([program, "http-backend"], environ) as cgi:
        yield cgi


@pytest.fixture(scope="module")
def node(gateways: Pool, server: CgiServer) -> Iterator[Patgate]:
    with Tap(server.port, "git") as tap:
        config = {"upstreams": {"git": {"servers": [tap.url]}}, "roles": ROLES, "routes": ROUTES}
        with gateways.lend(config) as gateway:
            gateway.add_user("eve@example.org", "editor")
            gateway.add_user("vic@example.org", "viewer")
            yield gateway


@pytest.fixture(scope="module")
def editor(node: Patgate) -> Token:
    return node.token("eve@example.org")


@pytest.fixture(scope="module")
def viewer(node: Patgate) -> Token:
    return node.token("vic@example.org")


@pytest.fixture(scope="module")
def work_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of fifty megabytes with one commit."""
    tree = tmp_path_factory.mktemp("git-work") / "tree"
    tree.mkdir()
    succeed("init", "--quiet", "--initial-branch=main", cwd=tree)
    succeed("config", "core.compression", "0", cwd=tree)
    for number in range(FILES):
        (tree / f"{number:02}.bin").write_bytes(os.urandom(MEBIBYTE))
    succeed("add", ".", cwd=tree)
    succeed("commit", "--quiet", "--message", "Fifty megabytes", cwd=tree)
    return tree


def url(node: Patgate, token: Token | None = None) -> str:
    login = f"git:{token.value}@" if token else ""
    return f"http://{login}{LOOPBACK}:{node.port}/git/demo.git"


@pytest.fixture(scope="module")
def pushed(node: Patgate, editor: Token, work_tree: Path) -> str:
    """The commit that an editor pushed through the gateway."""
    succeed("push", "--quiet", url(node, editor), "main", cwd=work_tree)
    return succeed("rev-parse", "main", cwd=work_tree).strip()


def test_an_editor_pushes_fifty_megabytes(pushed: str, project_root: Path) -> None:
    bare = project_root / "git" / "demo.git"
    assert succeed("rev-parse", "main", cwd=bare).strip() == pushed
    succeed("fsck", "--full", cwd=bare)
    size = sum(file.stat().st_size for file in bare.rglob("*") if file.is_file())
    assert size > FILES * MEBIBYTE


def test_a_viewer_clones_what_was_pushed(
    node: Patgate, viewer: Token, pushed: str, work_tree: Path, tmp_path: Path
) -> None:
    succeed("clone", "--quiet", url(node, viewer), "copy", cwd=tmp_path)
    copy = tmp_path / "copy"
    assert succeed("rev-parse", "HEAD", cwd=copy).strip() == pushed
    for file in work_tree.glob("*.bin"):
        assert (copy / file.name).read_bytes() == file.read_bytes()


def test_a_viewers_push_is_refused_and_changes_nothing(
    node: Patgate, viewer: Token, pushed: str, work_tree: Path, project_root: Path
) -> None:
    tree = succeed("rev-parse", "main^{tree}", cwd=work_tree).strip()
    commit = succeed("commit-tree", tree, "-p", "main", "-m", "Not allowed", cwd=work_tree).strip()
    done = git("push", url(node, viewer), f"{commit}:refs/heads/main", cwd=work_tree)
    assert done.returncode != 0
    assert "403" in done.stderr, done.stderr
    assert succeed("rev-parse", "main", cwd=project_root / "git" / "demo.git").strip() == pushed


def test_a_viewers_push_is_refused_at_its_first_request_in_words_that_git_shows(
    node: Patgate, viewer: Token, pushed: str, work_tree: Path, server: CgiServer
) -> None:
    before = len(server.requests)
    done = git("push", url(node, viewer), "main:refs/heads/first", cwd=work_tree)
    assert done.returncode != 0
    shown = re.search(r"^remote: (.*)$", done.stderr, re.MULTILINE)
    assert shown is not None, done.stderr
    words = "The owner's role does not permit this operation. It needs repos:update. (reason: role_denies, decision: "
    assert shown[1].startswith(words)
    assert len(server.requests) == before


@pytest.mark.parametrize("query", ["service=git-upload-pack&service=git-receive-pack", "Service=git-receive-pack"])
def test_a_push_in_disguise_is_refused_before_the_server(
    node: Patgate, viewer: Token, editor: Token, pushed: str, server: CgiServer, query: str
) -> None:
    before = len(server.requests)
    for token in (viewer, editor):
        with Connection(node.port) as connection:
            response = connection.request("GET", f"/git/demo.git/info/refs?{query}", headers=token.bearer)
        assert response.status == 400
        assert b"query_ambiguous" in response.body
    assert len(server.requests) == before


def test_a_large_push_of_a_viewer_is_refused_with_403(
    node: Patgate, viewer: Token, pushed: str, work_tree: Path, project_root: Path
) -> None:
    """Git sends a large pack in chunks after a probing request; it must still receive the refusal."""
    done = git("push", url(node, viewer), "main:refs/heads/other", cwd=work_tree)
    assert done.returncode != 0
    assert "403" in done.stderr, done.stderr
    branches = succeed("for-each-ref", "--format=%(refname)", cwd=project_root / "git" / "demo.git")
    assert branches.split() == ["refs/heads/main"]


def test_without_a_token_git_is_asked_for_a_password(node: Patgate, tmp_path: Path) -> None:
    with Connection(node.port) as connection:
        response = connection.request("GET", "/git/demo.git/info/refs?service=git-upload-pack")
    assert response.status == 401
    assert any(challenge.startswith("Basic ") for challenge in response.all("WWW-Authenticate"))
    done = git("clone", url(node), "copy", cwd=tmp_path)
    assert done.returncode != 0
    assert "could not read Username" in done.stderr, done.stderr


def test_a_wrong_token_is_refused(node: Patgate, editor: Token, tmp_path: Path) -> None:
    wrong = Token(id=editor.id, prefix=editor.prefix, value=editor.value.swapcase())
    done = git("clone", url(node, wrong), "copy", cwd=tmp_path)
    assert done.returncode != 0
    assert "Authentication failed" in done.stderr, done.stderr
    assert "remote: The token presented is not valid here. (reason: invalid_token, " in done.stderr
