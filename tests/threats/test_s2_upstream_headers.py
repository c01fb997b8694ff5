"""Threat model §2: an upstream's own identity, and the headers that patgate sets and removes for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.leaks import DIRECTORIES
from tests.support.operate import REFUSED, problems, reload
from tests.support.plugin import EDITOR, ROLES
from tests.support.pool import Pool
from tests.support.process import children, command_line, contents, of_process, wait_until
from tests.support.rawhttp import Connection, Response
from tests.support.recorder import Recorded, Recorder
from tests.threats.cases import aliases

SECRET = "s3cr3t-of-the-legacy-backend"
LATER = "an0ther-s3cr3t-of-that-backend"
MARK = b"mallory"
OURS = {"Remote-User", "Remote-Groups", "Remote-Name", "Remote-Email"}


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("secrets") / "backend"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder, secret: Path) -> Iterator[Patgate]:
    """A gateway with two upstreams: ``app`` has the global identity, ``legacy`` its own, and headers of its own."""
    config = {
        "listen": {"forward_auth": {"trusted": ["127.0.0.1/32"]}},
        "upstreams": {
            "app": {"servers": [backend.url]},
            "legacy": {
                "servers": [backend.url],
                "identity": {"preset": "remote-user"},
                "set_headers": {"Authorization": {"file": str(secret), "prefix": "Bearer "}, "X-Tenant": "north"},
                "remove_headers": ["Cookie", "X-Debug-Mode"],
            },
        },
        "roles": ROLES,
        "routes": [
            {"path": "/legacy/things/{id}", "upstream": "legacy", "entity": "things"},
            {"path": "/legacy/ui/**", "upstream": "legacy", "access": "passthrough"},
            {"path": "/app/things/{id}", "upstream": "app", "entity": "things"},
            {"path": "/app/ui/**", "upstream": "app", "access": "passthrough"},
        ],
    }
    with gateways.lend(config) as node:
        node.add_user(EDITOR, "editor")
        yield node


@pytest.fixture(scope="module")
def token(node: Patgate) -> Token:
    return node.token(EDITOR, name="upstreams")


def ask(node: Patgate, target: str, *lines: str, token: Token | None = None) -> Response:
    login = [f"Authorization: Bearer {token.value}"] if token else []
    head = "\r\n".join((f"GET {target} HTTP/1.1", "Host: gateway", *login, *lines, "", ""))
    with node.connect() as connection:
        return connection.exchange(head.encode())


def assert_of_legacy(seen: Recorded, secret: str = SECRET) -> None:
    """The backend has seen the headers of ``legacy``, each once, and nothing of the client's in their place."""
    assert MARK not in seen.head
    assert seen.only("Authorization") == f"Bearer {secret}"
    assert seen.only("X-Tenant") == "north"
    assert seen.all("Cookie") == seen.all("X-Debug-Mode") == []


def test_a_backend_gets_the_identity_of_its_upstream_and_its_own_credential(
    node: Patgate, recorder: Recorder, token: Token
) -> None:
    assert ask(node, "/legacy/things/1", "Accept: text/plain", token=token).status == 200
    seen = recorder.last()
    assert_of_legacy(seen)
    assert {name for name in (*OURS, "X-Auth-User", "X-Auth-Role", "X-Auth-Token") if seen.all(name)} == OURS
    assert (seen.only("Remote-Email"), seen.only("Remote-Groups")) == (EDITOR, "editor")
    assert seen.only("Accept") == "text/plain"
    assert token.value.encode() not in seen.head
    assert ask(node, "/app/things/1", "Cookie: a=b", "X-Debug-Mode: on", "X-Tenant: south", token=token).status == 200
    seen = recorder.last()
    assert (seen.only("X-Auth-Email"), seen.only("Cookie"), seen.only("X-Tenant")) == (EDITOR, "a=b", "south")
    assert seen.all("Authorization") == seen.all("Remote-User") == []
    assert seen.only("X-Debug-Mode") == "on"


@pytest.mark.parametrize("target", ["/legacy/things/1", "/app/things/1", "/legacy/ui/x", "/app/ui/x"])
@pytest.mark.parametrize("name", ["Remote-User", "Remote-Groups", "X-Auth-User", "X-Auth-Role"])
def test_the_identity_headers_of_every_upstream_are_stripped_on_every_route(
    target: str, name: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    login = token if "things" in target else None
    for alias in aliases(name):
        assert ask(node, target, f"{alias}: mallory", f"{alias}: mallory2", token=login).status == 200
        assert MARK not in recorder.last().head, alias


@pytest.mark.parametrize("target", ["/legacy/things/1", "/legacy/ui/x"])
@pytest.mark.parametrize("name", ["X-Tenant", "Cookie", "X-Debug-Mode"])
def test_a_header_that_an_upstream_sets_or_removes_is_never_the_clients(
    target: str, name: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    login = token if "things" in target else None
    for alias in aliases(name):
        answer = ask(node, target, f"{alias}: mallory", "Accept: */*", f"{alias}:mallory", token=login)
        assert answer.status == 200, alias
        assert_of_legacy(recorder.last())
        assert recorder.last().only("Accept") == "*/*"


@pytest.mark.parametrize(
    "lines",
    [
        ["Authorization: Basic bWFsbG9yeTptYWxsb3J5"],
        ["authorization: Negotiate mallory"],
        ["X_Authorization: a", "AUTHORIZATION: Basic bWFsbG9yeTptYWxsb3J5"],
    ],
)
def test_a_login_of_the_backends_own_is_replaced_too(lines: list[str], node: Patgate, recorder: Recorder) -> None:
    assert ask(node, "/legacy/ui/x", *lines).status == 200
    assert_of_legacy(recorder.last())
    assert b"bWFsbG9yeTptYWxsb3J5" not in recorder.last().head
    assert ask(node, "/app/ui/x", lines[-1]).status == 200
    assert recorder.last().only("Authorization") == lines[-1].partition(": ")[2]


@pytest.mark.parametrize("nomination", ["x-tenant", "remote-user, X-Tenant", "close, x-tenant, Remote-Groups"])
def test_a_client_cannot_have_a_header_of_the_upstream_deleted(
    nomination: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    assert ask(node, "/legacy/things/1", f"Connection: {nomination}", "X-Tenant: mallory", token=token).status == 200
    assert_of_legacy(recorder.last())
    assert recorder.last().only("Remote-Groups") == "editor"


def test_trailers_add_nothing_to_them(node: Patgate, recorder: Recorder, token: Token) -> None:
    head = f"PUT /legacy/things/1 HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {token.value}\r\n"
    body = "2\r\nhi\r\n0\r\nX-Tenant: mallory\r\nRemote-User: mallory\r\nCookie: mallory\r\n\r\n"
    with node.connect() as connection:
        assert connection.exchange(f"{head}Transfer-Encoding: chunked\r\n\r\n{body}".encode()).status == 200
    assert_of_legacy(recorder.last())
    assert MARK not in recorder.last().body


def test_an_ingress_gets_the_identity_of_the_routes_upstream_and_the_other_headers_empty(
    node: Patgate, token: Token
) -> None:
    for target, email, empty in (
        ("/legacy/things/1", b"remote-email", b"x-auth-email"),
        ("/app/things/1", b"x-auth-email", b"remote-email"),
    ):
        head = (
            f"GET /nginx HTTP/1.1\r\nHost: gateway\r\nX-Original-Method: GET\r\nX-Original-URI: {target}\r\n"
            f"Authorization: Bearer {token.value}\r\nRemote-Email: mallory\r\nX-Auth-Email: mallory\r\n\r\n"
        )
        with Connection(node.forward_auth_port) as connection:
            answer = connection.exchange(head.encode())
        assert answer.status == 200
        assert [value for name, value in answer.headers if name.lower() == email] == [EDITOR.encode()]
        assert [value for name, value in answer.headers if name.lower() == empty] == [b""]
        assert SECRET.encode() not in b"".join(value for _, value in answer.headers)


def test_explain_shows_the_identity_of_the_upstream(node: Patgate, token: Token) -> None:
    shown = node.cli("explain", token.id, "GET", "/legacy/things/1")["identity"]
    assert {field["name"] for field in shown} == OURS
    assert node.cli("explain", token.id, "GET", "/app/things/1")["identity"][0]["name"] == "X-Auth-User"


def test_all_workers_send_the_content_of_the_file_at_the_last_reload_that_could_read_it(
    tmp_path: Path, backend: Recorder
) -> None:
    """On a gateway of its own, because one with a refused reload is lent to no other test."""
    file = tmp_path / "backend"
    file.write_text(SECRET)
    file.chmod(0o600)
    app = {"servers": [backend.url], "set_headers": {"Authorization": {"file": str(file)}}}
    config = {
        "workers": 1,
        "upstreams": {"app": app},
        "routes": [{"path": "/x", "upstream": "app", "access": "public"}],
    }
    with Patgate(tmp_path / "node", config) as node:
        node.expects("child ended", "configuration problem", REFUSED)
        with node.connect() as kept:

            def seen() -> str:
                assert kept.exchange(b"GET /x HTTP/1.1\r\nHost: gateway\r\n\r\n").status == 200
                return backend.last().only("Authorization")

            assert seen() == SECRET
            file.write_text(LATER)
            assert seen() == SECRET
            reload(node)
            assert seen() == LATER
            file.write_text("")
            reload(node, expect=REFUSED)
            checked = node.here("check").stderr.splitlines()
            assert checked[-1].endswith(
                f'set_headers["Authorization"]: the content of the file "{file}" must not be empty'
            )
            assert problems(node) == checked
            assert seen() == LATER
        file.unlink()
        (before,) = node.all_workers()
        node.kill(before)
        node.all_workers()
        wait_until(node.is_ready, "ready again", process=node.process)
        assert ask(node, "/x").status == 200
        assert backend.last().only("Authorization") == LATER


def test_the_backends_credential_is_in_no_file_title_environment_metric_answer_or_check(
    node: Patgate, recorder: Recorder, token: Token, secret: Path
) -> None:
    answers = [ask(node, "/legacy/things/1", token=token), ask(node, "/legacy/things/1"), ask(node, "/legacy/x//y")]
    texts = [answer.body + b"".join(value for _, value in answer.headers) for answer in answers]
    texts.append(node.control("GET", "/metrics").body)
    done = node.here("check")
    texts.append((done.stdout + done.stderr).encode())
    assert done.returncode == 0
    assert "requests without a token get it too" in done.stderr
    secret.chmod(0o644)
    try:
        done = node.here("check")
    finally:
        secret.chmod(0o600)
    assert (done.returncode, "is open to other users" in done.stderr) == (1, True)
    texts.append((done.stdout + done.stderr).encode())
    processes = [node.process.pid, *children(node.process.pid)]
    texts += [" ".join(command_line(pid)).encode() for pid in processes]
    texts += [of_process(pid, "environ") for pid in processes]
    texts += [content for _, content in contents(node.directory)]
    assert node.directory in DIRECTORIES
    assert len(texts) > 10
    for text in texts:
        assert SECRET.encode() not in text
        assert LATER.encode() not in text
