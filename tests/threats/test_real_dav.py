"""Threat model §2, second targets: ``Destination`` with real WebDAV servers (RFC 4918) and real files.

wsgidav, nginx and Apache. The path to which a COPY or MOVE writes is checked like the path of a PUT; a refused request
changes no file.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.differential.targets import KIND, LENIENT, STEPS, fit
from tests.support.gateway import Patgate, Token, token_of
from tests.support.pool import Pool
from tests.support.rawhttp import Response
from tests.support.realservers import FILE_SERVERS, RealServer, of_this_build, real_servers

MEMBER = "eve@example.org"

FILES = {
    "dav/orgs/lab/f": "the lab's file",
    "dav/orgs/lab/kept": "what the lab keeps",
    "dav/orgs/shop/f": "the shop's file",
    "dav/orgs/club/f": "the club's file",
    "dav/locked/s": "a secret",
    "dav/shared/x": "for everybody",
    "dav/shared/secret": "for nobody",
    "dav/shared/private/p": "for nobody either",
}

SOURCE = "/dav/orgs/lab/f"
WRITABLE = ("dav/orgs/lab/f", "dav/orgs/lab/kept", "dav/shared/x")
FORBIDDEN = ("/dav/orgs/shop/f", "/dav/orgs/club/f", "/dav/locked/s", "/dav/shared/secret", "/dav/shared/private/p")

AT_MOST = 200

ROLES = {"writer": ["files:*"], "reader": ["files:read", "files:copy"]}


def routes_of(server: RealServer) -> list[dict[str, Any]]:
    operations = {"GET": "read", "PUT": "update", "DELETE": "delete", "COPY": "copy", "MOVE": "move"}
    return [
        {"host": server.host, "upstream": server.name} | route
        for route in (
            {"path": "/dav/locked/**", "access": "denied"},
            {"path": "/dav/shared/secret", "access": "denied"},
            {"path": "/dav/shared/private/**", "access": "denied"},
            {"path": "/dav/shared/**", "entity": "files", "operations": operations},
            {"path": "/dav/orgs/{org}/{id}", "entity": "files", "operations": operations},
        )
    ]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RealServer]]:
    with real_servers(tmp_path_factory.mktemp("dav"), of_this_build(FILE_SERVERS)) as running:
        yield running


@pytest.fixture(scope="module")
def front(gateways: Pool, servers: dict[str, RealServer]) -> Iterator[Patgate]:
    config = {
        "workers": 1,
        "upstreams": {name: {"servers": [server.url]} for name, server in servers.items()},
        "roles": ROLES,
        "routes": [route for server in servers.values() for route in routes_of(server)],
    }
    with gateways.lend(config) as node:
        node.add_user(MEMBER, "writer")
        with node.control_socket() as control:
            for org in ("lab", "shop", "club"):
                control.call("POST", "/orgs", {"name": org})
            control.call("PUT", f"/orgs/lab/members/{MEMBER}", {"role": "writer"})
            control.call("PUT", f"/orgs/club/members/{MEMBER}", {"role": "reader"})
        yield node


@pytest.fixture(scope="module")
def token(front: Patgate) -> Token:
    return made(front, "dav")


def made(front: Patgate, name: str, scopes: Sequence[str] | None = None) -> Token:
    """A token that reaches every organisation of its owner."""
    with front.control_socket() as control:
        asked = {"user": MEMBER, "name": name, "reach": "account", "scopes": scopes}
        return token_of(control.call("POST", "/tokens", asked))


@pytest.fixture(params=of_this_build(FILE_SERVERS))
def server(request: pytest.FixtureRequest, servers: dict[str, RealServer]) -> RealServer:
    """A server that has the same files for each test."""
    chosen = servers[request.param]
    restore(chosen)
    return chosen


def restore(server: RealServer) -> None:
    """Restore the files of a server to ``FILES``."""
    if files(server) == FILES:
        return
    for path in sorted(server.files.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for name, text in FILES.items():
        path = server.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in server.files.rglob("*"):
        # The server may run as another user.
        path.chmod(0o777 if path.is_dir() else 0o666)


def files(server: RealServer) -> dict[str, str]:
    """Every file, except for the server's internal ones."""
    return {
        str(path.relative_to(server.files)): path.read_text()
        for path in server.files.rglob("*")
        if path.is_file() and ".DAV" not in path.parts
    }


def ask(front: Patgate, server: RealServer, method: str, lines: str, token: Token, source: str = SOURCE) -> Response:
    """Send one request; ``{host}`` in the field lines is replaced by the server's host."""
    head = (
        f"{method} {source} HTTP/1.1\r\nHost: {server.host}\r\nAuthorization: Bearer {token.value}\r\n"
        f"Overwrite: T\r\n{lines.replace('{host}', server.host)}\r\n"
    )
    with front.connect() as connection:
        return connection.exchange(head.encode("latin-1"))


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
@pytest.mark.parametrize(
    "destination", ["http://{host}/dav/orgs/lab/new", "/dav/orgs/lab/new", "http://{host}/dav/orgs/lab/kept"]
)
def test_a_file_is_written_to_a_destination_that_the_token_may_write(
    destination: str, method: str, server: RealServer, front: Patgate, token: Token
) -> None:
    if server.name == "apache-dav" and destination.startswith("/"):
        destination = "http://{host}" + destination  # it accepts no other form
    response = ask(front, server, method, f"Destination: {destination}\r\n", token)
    assert response.status in (201, 204), response
    found = files(server)
    assert found[destination.partition("/dav")[2].join(["dav", ""])] == FILES["dav/orgs/lab/f"]
    assert ("dav/orgs/lab/f" in found) is (method == "COPY")
    others = set(FILES) - {"dav/orgs/lab/f", "dav/orgs/lab/kept"}
    assert {name: found[name] for name in others} == {name: FILES[name] for name in others}


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
@pytest.mark.parametrize(
    ("destination", "reason"),
    [
        ("http://{host}/dav/orgs/shop/f", "org_mismatch"),
        ("/dav/orgs/shop/f", "org_mismatch"),
        ("http://{host}/dav/orgs/shop/new", "org_mismatch"),
        ("http://{host}/dav/orgs/club/f", "role_denies"),
        ("http://{host}/dav/orgs/club/new", "role_denies"),
        ("http://{host}/dav/locked/s", "route_denied"),
        ("/dav/locked/new", "route_denied"),
        ("http://{host}/dav/elsewhere", "no_route"),
        ("http://{host}/", "no_route"),
        ("http://{host}/dav/orgs/lab", "no_route"),
    ],
)
def test_a_destination_that_the_token_may_not_write_is_refused_for_its_own_reason(
    destination: str, reason: str, method: str, server: RealServer, front: Patgate, token: Token
) -> None:
    response = ask(front, server, method, f"Destination: {destination}\r\n", token)
    assert files(server) == FILES
    assert response.status == 403
    assert response.json()["reason"] == reason


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
@pytest.mark.parametrize(
    "lines",
    [
        # another host
        *(
            "Destination: http://elsewhere.test/dav/orgs/lab/new\r\n",
            "Destination: //elsewhere.test/dav/orgs/lab/new\r\n",
        ),
        *(
            "Destination: http://{host}.elsewhere/dav/orgs/lab/new\r\n",
            "Destination: ftp://{host}/dav/orgs/lab/new\r\n",
        ),
        *("Destination: http://a@{host}/dav/orgs/lab/new\r\n", "Destination: http://{host}@b/dav/orgs/lab/new\r\n"),
        # not an absolute path
        *("Destination: new\r\n", "Destination: ../shop/f\r\n", "Destination: ./new\r\n", "Destination: ?new\r\n"),
        *("Destination: dav/orgs/lab/new\r\n", "Destination: http:/dav/orgs/lab/new\r\n"),
        # more than one reading
        *("Destination: http://{host}/dav/orgs/lab/../shop/f\r\n", "Destination: /dav/orgs/lab/%2e%2e/shop/f\r\n"),
        *("Destination: /dav/orgs/lab/..%2fshop%2ff\r\n", "Destination: /dav/orgs/lab/./new\r\n"),
        *("Destination: /dav/orgs//lab/new\r\n", "Destination: /dav/orgs/lab/new%00\r\n"),
        *("Destination: /dav/orgs/lab%2fnew\r\n", "Destination: /dav/orgs/lab/..;/shop/f\r\n"),
        *("Destination: /dav/orgs/lab/%252e%252e/shop/f\r\n", "Destination: /dav/orgs/lab/..\\shop\\f\r\n"),
        *("Destination: /dav/orgs/lab/new#f\r\n", "Destination: /dav/orgs/lab/\xff\r\n"),
        # no target
        *("Destination:\r\n", "Destination: \t\r\n", "Destination: http://\r\n", "Destination: http:///dav/new\r\n"),
        *("Destination: http://[::1/dav/orgs/lab/new\r\n", "Destination: <http://{host}/dav/orgs/lab/new>\r\n"),
        "Destination: /dav/orgs/lab/new, /dav/orgs/shop/f\r\n",
        # twice
        "Destination: /dav/orgs/lab/new\r\nDestination: /dav/orgs/shop/f\r\n",
        "Destination: /dav/orgs/shop/f\r\nDestination: /dav/orgs/lab/new\r\n",
        "Destination: /dav/orgs/lab/new\r\nDESTINATION: /dav/orgs/lab/new\r\n",
    ],
)
def test_a_destination_that_is_none_or_more_than_one_is_refused(
    lines: str, method: str, server: RealServer, front: Patgate, token: Token
) -> None:
    response = ask(front, server, method, lines, token)
    assert files(server) == FILES
    assert response.status == 400
    assert response.json()["reason"] in ("second_target_invalid", "target_not_canonical", "request_malformed")


def test_the_scopes_of_a_token_bound_where_it_copies_to(server: RealServer, front: Patgate) -> None:
    token = made(front, f"{server.name} scoped", ["files/f:copy", "files/new:update"])
    response = ask(front, server, "COPY", "Destination: /dav/orgs/lab/kept\r\n", token)
    assert files(server) == FILES
    assert (response.status, response.json()["reason"]) == (403, "scope_denies")
    assert "update" in (response.get("WWW-Authenticate") or "")
    response = ask(front, server, "COPY", "Destination: http://{host}/dav/orgs/lab/new\r\n", token)
    assert response.status in (201, 204)
    assert files(server) == FILES | {"dav/orgs/lab/new": FILES["dav/orgs/lab/f"]}


@pytest.mark.parametrize("nominated", ["Destination", "destination"])
def test_a_destination_that_connection_names_is_judged_or_does_not_arrive(
    nominated: str, server: RealServer, front: Patgate, token: Token
) -> None:
    lines = f"Destination: /dav/orgs/shop/f\r\nConnection: {nominated}\r\n"
    assert ask(front, server, "COPY", lines, token).status >= 400
    assert files(server) == FILES


@pytest.mark.parametrize(
    "name",
    [
        "X-Amz-Copy-Source",
        "x-amz-copy-source",
        "X_Amz_Copy_Source",
        "X-Ms-Copy-Source",
        "X-Goog-Copy-Source",
        "X-Copy-From",
    ],
)
def test_a_second_resource_that_patgate_cannot_judge_is_refused(
    name: str, server: RealServer, front: Patgate, token: Token
) -> None:
    response = ask(front, server, "PUT", f"{name}: /shop/f\r\nContent-Length: 0\r\n", token)
    assert files(server) == FILES
    assert (response.status, response.json()["reason"]) == (403, "second_target")


def tricks() -> list[bytes]:
    """A sample of tricks from every path that the token may write to every one that it may not, and their disguises."""
    found: dict[bytes, None] = {}
    for step in STEPS:
        for base in ("/dav/orgs/lab/", "/dav/orgs/lab/new", "/dav/shared/", "/dav/shared/x"):
            for goal in ("", "/shop/f", "/orgs/shop/f", "/locked/s", "/secret", "/private/p"):
                found[fit(f"{base}{step}{goal}")] = None
    for place in FORBIDDEN:
        for piece in (*STEPS, *KIND, *LENIENT):
            found[fit(place + piece)] = None
            found[fit(place.replace("/dav/", f"/dav/{piece}/"))] = None
            found[fit(f"/dav/shared/x{piece}{place}")] = None
        for at, byte in enumerate(place.encode()):
            for escape in (f"%{byte:02x}", f"%25{byte:02x}", f"%u{byte:04x}"):
                found[fit(place[:at] + escape + place[at + 1 :])] = None
    known = [place + piece for place in FORBIDDEN for piece in ("%3F", "%3Fx", "%3f/x", "%23", "%3B", ";x", "%20", ".")]
    chosen = random.Random(8).sample(list(found), AT_MOST)
    return [*(fit(text) for text in (*known, "/dav/orgs/lab/..%3F", "/dav/shared/..%3fx")), *chosen]


@pytest.mark.parametrize("form", ["", "http://{host}"], ids=["path", "whole"])
def test_no_trick_in_a_destination_writes_what_the_token_may_not(
    form: str, server: RealServer, front: Patgate, token: Token
) -> None:
    """For each of these, the server reads ``Destination`` as patgate does, or patgate refuses it."""
    protected = {name: text for name, text in FILES.items() if name not in WRITABLE}
    written = []
    for trick in tricks():
        restore(server)
        destination = form.replace("{host}", server.host).encode() + trick
        head = f"COPY {SOURCE} HTTP/1.1\r\nHost: {server.host}\r\nAuthorization: Bearer {token.value}\r\nDestination: "
        with front.connect() as connection:
            connection.exchange(head.encode() + destination + b"\r\n\r\n")
        found = files(server)
        inside = {name for name in found if name.startswith(("dav/orgs/lab/", "dav/shared/"))} - protected.keys()
        if {name: text for name, text in found.items() if name not in inside} != protected:
            written.append(destination)
    assert written == []
