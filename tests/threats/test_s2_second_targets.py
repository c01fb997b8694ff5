"""Threat model §2: a second resource in a header is checked like the request's own, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from proxy.core.request.second_targets import UNJUDGED
from tests.support.gateway import ControlClient, Patgate, Token, token_of
from tests.support.operate import reload
from tests.support.pool import Pool
from tests.support.process import wait_until
from tests.support.quotas import recorded
from tests.support.rawhttp import Connection, Response
from tests.support.recorder import Recorder

OWNER = "olga@example.org"
ROUTES = [
    {"path": "/dav/locked/**", "upstream": "app", "access": "denied"},
    {
        "path": "/dav/orgs/{org}/{id}",
        "upstream": "app",
        "entity": "files",
        "operations": {"GET": "read", "PUT": "update", "DELETE": "delete", "COPY": "read", "MOVE": "delete"},
    },
    {
        "path": "/dav/archive/{id}",
        "upstream": "app",
        "entity": "archive",
        "operations": {"GET": "read", "COPY": "read"},
    },
    {"path": "/dav/free/{id}", "upstream": "app", "entity": "free", "operations": {"COPY": "duplicate"}},
    {"path": "/dav/other/{id}", "upstream": "elsewhere", "entity": "files", "operations": {"PUT": "update"}},
    {"path": "/dav/watched/{id}", "upstream": "app", "entity": "watched", "enforce": False},
    {"path": "/public/**", "upstream": "app", "access": "public"},
    {"path": "/ui/**", "upstream": "app", "access": "passthrough"},
    {"path": "/s3/{id}", "upstream": "app", "entity": "objects", "second_targets": ["x-amz-copy-source"]},
    {"path": "/v1/{entity}/{id}", "upstream": "app"},
    {"path": "/loose/**", "upstream": "app", "access": "public", "allow": ["empty_segment"]},
    {"path": "/**", "upstream": "app", "access": "public", "host": "loose.example", "allow": ["empty_segment"]},
]


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    config = {
        "workers": 1,
        "listen": {"forward_auth": {"trusted": ["127.0.0.1/32"]}},
        "upstreams": {"app": {"servers": [backend.url]}, "elsewhere": {"servers": [backend.url]}},
        "roles": {"editor": ["files:*", "archive:read", "free:duplicate", "objects:*", "things:read"]},
        "routes": ROUTES,
    }
    with gateways.lend(config) as node:
        with node.control_socket() as control:
            for org in ("a", "b"):
                control.call("POST", "/orgs", {"name": org})
        node.cli("user", "add", OWNER, "--role", "editor", "--org", "a")
        yield node


def mint(node: Patgate, *scopes: str) -> Token:
    """A token of the owner for organisation a."""
    with node.control_socket() as control:
        asked = {"user": OWNER, "name": "dav", "org": "a", "scopes": list(scopes) or None}
        return token_of(control.call("POST", "/tokens", asked))


@pytest.fixture(scope="module")
def token(node: Patgate) -> Token:
    return mint(node)


@pytest.fixture(scope="module")
def reader(node: Patgate) -> Token:
    return mint(node, "files:read", "things:read")


def ask(
    node: Patgate, method: str, target: str, *lines: str, token: Token | None, host: str = "dav.example", port: int = 0
) -> Response:
    login = () if token is None else (f"Authorization: Bearer {token.value}",)
    head = "\r\n".join((f"{method} {target} HTTP/1.1", f"Host: {host}", *lines, *login, "", ""))
    with Connection(port or node.port) as connection:
        return connection.exchange(head.encode("latin-1"))


@pytest.mark.parametrize(
    "destination",
    [
        "/dav/orgs/a/copy",
        "http://dav.example/dav/orgs/a/copy",
        "https://dav.example/dav/orgs/a/copy",
        "http://DAV.example:80/dav/orgs/a/copy",
        "/dav/orgs/a/%7Ecopy%20of%20f",
    ],
)
@pytest.mark.parametrize("method", ["COPY", "MOVE"])
def test_a_destination_within_reach_is_passed_on_as_it_came(
    method: str, destination: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    assert ask(node, method, "/dav/orgs/a/f", f"Destination: {destination}", token=token).status == 200
    assert recorder.last().only("Destination") == destination


@pytest.mark.parametrize(
    ("destination", "status", "reason"),
    [
        ("/dav/orgs/b/f", 403, "org_mismatch"),
        ("http://dav.example/dav/orgs/b/f", 403, "org_mismatch"),
        ("/dav/locked/s", 403, "route_denied"),
        ("/nowhere/f", 403, "no_route"),
        ("/dav/archive/f", 403, "operation_unmapped"),
        ("/v1/secrets/f", 403, "role_denies"),
        ("/dav/other/f", 403, "second_target"),
        ("/public/f", 403, "second_target"),
        ("/ui/f", 403, "second_target"),
        ("/dav/orgs/a/../b/f", 400, "target_not_canonical"),
        ("/dav/orgs/a//f", 400, "target_not_canonical"),
        ("/dav/orgs/%61/%2e%2e/f", 400, "target_not_canonical"),
        ("http://evil.example/dav/orgs/a/f", 400, "second_target_invalid"),
        ("http://dav.example:8080/dav/orgs/a/f", 400, "second_target_invalid"),
        ("http://dav.example@evil.example/dav/orgs/a/f", 400, "second_target_invalid"),
        ("//evil.example/dav/orgs/a/f", 400, "second_target_invalid"),
        ("ftp://dav.example/dav/orgs/a/f", 400, "second_target_invalid"),
        ("dav/orgs/a/f", 400, "second_target_invalid"),
        ("*", 400, "second_target_invalid"),
        ("", 400, "second_target_invalid"),
        ("http://dav.example", 400, "second_target_invalid"),
        ("/dav/orgs/a/f#x", 400, "target_not_canonical"),
        ("/dav/orgs/a/f, /dav/orgs/b/f", 400, "target_not_canonical"),
    ],
)
@pytest.mark.parametrize("method", ["COPY", "MOVE"])
def test_a_destination_that_is_not_allowed_is_refused_and_nothing_arrives(
    method: str, destination: str, status: int, reason: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    response = ask(node, method, "/dav/orgs/a/f", f"Destination: {destination}", token=token)
    assert (response.status, response.json()["reason"]) == (status, reason)
    assert recorder.requests == []


def test_a_destination_named_twice_is_refused(node: Patgate, recorder: Recorder, token: Token) -> None:
    lines = ("Destination: /dav/orgs/a/f", "destination: /dav/orgs/a/g")
    response = ask(node, "COPY", "/dav/orgs/a/f", *lines, token=token)
    assert (response.status, response.json()["reason"]) == (400, "second_target_invalid")
    assert recorder.requests == []


def test_scopes_and_their_challenge_are_those_of_the_destination(
    node: Patgate, recorder: Recorder, reader: Token
) -> None:
    """Reading the source is within the token's scopes; writing the destination is not."""
    assert ask(node, "COPY", "/dav/orgs/a/f", token=reader).status == 200
    recorder.clear()
    response = ask(node, "COPY", "/dav/orgs/a/f", "Destination: /dav/orgs/a/g", token=reader)
    assert (response.status, response.json()["reason"]) == (403, "scope_denies")
    assert 'scope="files:update"' in (response.get("WWW-Authenticate") or "")
    assert recorder.requests == []


def test_a_method_that_only_reads_does_not_stand_for_writing(node: Patgate, recorder: Recorder, token: Token) -> None:
    """The archive can be a source. It has no operation for PUT, so it cannot be a destination."""
    assert ask(node, "COPY", "/dav/archive/f", "Destination: /dav/orgs/a/f", token=token).status == 200
    recorder.clear()
    response = ask(node, "COPY", "/dav/archive/f", "Destination: /dav/archive/g", token=token)
    assert (response.status, response.json()["reason"]) == (403, "operation_unmapped")
    assert recorder.requests == []


def test_the_routes_own_operation_stands_for_writing_where_it_knows_no_put(
    node: Patgate, recorder: Recorder, token: Token
) -> None:
    assert ask(node, "COPY", "/dav/free/f", "Destination: /dav/free/g", token=token).status == 200
    response = ask(node, "MOVE", "/dav/orgs/a/f", "Destination: /dav/free/g", token=token)
    assert (response.status, response.json()["reason"]) == (403, "operation_unmapped")


def test_without_a_token_only_what_is_as_open_can_be_written(node: Patgate, recorder: Recorder) -> None:
    assert ask(node, "COPY", "/public/f", "Destination: /public/g", token=None).status == 200
    recorder.clear()
    for target, destination in (
        ("/public/f", "/dav/orgs/a/f"),
        ("/public/f", "/ui/f"),
        ("/ui/f", "/dav/orgs/a/f"),
        ("/public/f", "/dav/locked/f"),
    ):
        response = ask(node, "COPY", target, f"Destination: {destination}", token=None)
        assert response.status == 403, (target, destination)
    assert recorder.requests == []


@pytest.mark.parametrize("name", UNJUDGED)
@pytest.mark.parametrize("target", ["/v1/things/1", "/public/x", "/ui/x"])
def test_a_header_that_cannot_be_judged_is_refused_under_every_alias(
    target: str, name: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    for spelling in (name, name.lower(), name.replace("-", "_"), name.upper().replace("-", ".")):
        response = ask(node, "GET", target, f"{spelling}: /bucket/secret", token=token)
        assert (response.status, response.json()["reason"]) == (403, "second_target"), spelling
    assert recorder.requests == []


def test_a_route_may_pass_one_on_to_a_backend_that_judges_it(node: Patgate, recorder: Recorder, token: Token) -> None:
    assert ask(node, "PUT", "/s3/7", "x-amz-copy-source: /b/k", "Content-Length: 0", token=token).status == 200
    assert recorder.last().only("x-amz-copy-source") == "/b/k"
    recorder.clear()
    response = ask(node, "PUT", "/s3/7", "x-ms-copy-source: /b/k", "Content-Length: 0", token=token)
    assert response.json()["reason"] == "second_target"
    assert recorder.requests == []


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("(<opaquelocktoken:1>)", 200),
        ('(<opaquelocktoken:1> ["etag"]) (Not <DAV:no-lock>)', 200),
        ("</dav/orgs/a/f> (<opaquelocktoken:1>)", 200),
        ("<http://dav.example/dav/orgs/a/f> (<opaquelocktoken:1>) </dav/orgs/a/g> (Not <DAV:no-lock>)", 200),
        ("</dav/orgs/b/f> (<opaquelocktoken:1>)", 403),
        ("</dav/orgs/a/f> (<opaquelocktoken:1>) </dav/locked/s> (<opaquelocktoken:1>)", 403),
        ("<http://evil.example/dav/orgs/a/f> (<opaquelocktoken:1>)", 400),
        ("</dav/orgs/a/f (<opaquelocktoken:1>)", 400),
        ("(", 400),
        ("something else", 400),
    ],
)
def test_the_resources_that_an_if_names_are_judged_as_reads(
    value: str, status: int, node: Patgate, recorder: Recorder, token: Token
) -> None:
    """RFC 4918 section 10.4: with a tagged list the response depends on another resource."""
    assert ask(node, "GET", "/dav/orgs/a/f", f"If: {value}", token=token).status == status
    assert len(recorder.requests) == (status == 200)


def test_a_route_that_only_reports_lets_it_through_and_counts_it(
    node: Patgate, recorder: Recorder, token: Token
) -> None:
    response = ask(node, "PUT", "/dav/watched/f", "x-amz-copy-source: /b/k", "Content-Length: 0", token=token)
    assert response.status == 200
    response = ask(node, "PUT", "/dav/watched/f", "Destination: /dav/locked/s", "Content-Length: 0", token=token)
    assert (response.status, response.json()["reason"]) == (403, "route_denied")


REPORTED = "If: </dav/watched/f> (<urn:x>)"
"""A resource that the token may not access, on a report-only route."""


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ((REPORTED, "Destination: /dav/orgs/b/f"), "org_mismatch"),
        ((REPORTED, "Destination: /dav/locked/s"), "route_denied"),
        ((REPORTED, "Destination: /dav/orgs/a/g", "destination: /dav/orgs/a/h"), "second_target_invalid"),
        ((REPORTED, "x-amz-copy-source: /b/k"), "second_target"),
        (("Destination: /dav/watched/f", "If: </dav/orgs/b/f> (<urn:x>)"), "org_mismatch"),
        ((REPORTED + " </dav/orgs/b/f> (<urn:x>)",), "org_mismatch"),
    ],
)
def test_what_is_only_reported_hides_no_other_resource(
    lines: tuple[str, ...], reason: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    assert ask(node, "COPY", "/dav/orgs/a/f", REPORTED, token=token).status == 200
    recorder.clear()
    response = ask(node, "COPY", "/dav/orgs/a/f", *lines, token=token)
    assert response.json()["reason"] == reason
    assert recorder.requests == []


@pytest.mark.parametrize("destination", ["/dav/locked/s", "/dav/orgs/b/f", "/dav/other/f"])
def test_a_route_that_only_reports_opens_no_route_that_does_not(
    destination: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    for lines in ((f"Destination: {destination}",), ("x-amz-copy-source: /b/k", f"Destination: {destination}")):
        for credential in (token, None):
            response = ask(node, "PUT", "/dav/watched/f", *lines, "Content-Length: 0", token=credential)
            assert response.status in (401, 403), lines
    assert recorder.requests == []


@pytest.mark.parametrize("destination", ["//dav.example/dav/locked/s", "//loose.example/dav/locked/s", "//x"])
def test_what_servers_read_as_a_host_is_no_path_whatever_the_route_allows(
    destination: str, node: Patgate, recorder: Recorder
) -> None:
    """RFC 3986 section 4.2: ``//host/path`` is a reference with a host, and wsgidav, for example, reads it so."""
    assert ask(node, "COPY", "/loose//f", "Destination: /loose//g", token=None).status == 200
    recorder.clear()
    for line in (f"Destination: {destination}", f"If: <{destination}> (<urn:x>)"):
        response = ask(node, "COPY", "/loose/f", line, token=None, host="loose.example")
        assert (response.status, response.json()["reason"]) == (400, "second_target_invalid")
    assert recorder.requests == []


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("Destination: /dav/orgs/a/g", 200),
        ("Destination: http://dav.example:8443/dav/orgs/a/g", 200),
        ("Destination: /dav/orgs/b/g", 403),
        ("Destination: /dav/locked/s", 403),
        ("Destination: http://evil.example/dav/orgs/a/g", 400),
        ("x-amz-copy-source: /b/k", 403),
    ],
)
@pytest.mark.parametrize("shape", ["nginx", "caddy"])
def test_forward_auth_judges_them_too(shape: str, line: str, status: int, node: Patgate, token: Token) -> None:
    family, method, uri = ("Original", "Method", "URI") if shape == "nginx" else ("Forwarded", "Method", "Uri")
    described = (f"X-{family}-{method}: COPY", f"X-{family}-{uri}: /dav/orgs/a/f", "X-Forwarded-Host: dav.example")
    response = ask(node, "GET", f"/{shape}", *described, line, token=token, port=node.forward_auth_port)
    assert response.status == status or (shape == "nginx" and response.all("X-Patgate-Status") == [str(status)])


def test_a_second_target_behind_a_trusted_proxy_may_have_the_public_name(gateways: Pool, recorder: Recorder) -> None:
    config = {
        "workers": 1,
        "listen": {"proxy": {"trusted": ["127.0.0.1/32"]}},
        "upstreams": {"app": {"servers": [recorder.url]}},
        "routes": [{"path": "/**", "upstream": "app", "access": "public"}],
    }
    with gateways.lend(config) as behind:
        for destination, status in (("http://files.example/b", 200), ("http://inner/b", 200), ("http://x/b", 400)):
            lines = ("X-Forwarded-Host: files.example", f"Destination: {destination}")
            assert ask(behind, "COPY", "/a", *lines, token=None, host="inner").status == status


def events_of(control: ControlClient, query: str) -> list[dict[str, Any]]:
    """The events that a query of the audit log returns."""
    return list(control.call("GET", query)["items"])


@pytest.mark.parametrize(
    ("line", "who", "reason", "named"),
    [
        ("Destination: /dav/orgs/b/f", "token", "org_mismatch", ("destination", "PUT", "/dav/orgs/b/f")),
        (
            "Destination: http://dav.example/dav/locked/s",
            "token",
            "route_denied",
            ("destination", "PUT", "/dav/locked/s"),
        ),
        ("Destination: /nowhere", "token", "no_route", ("destination", "PUT", "/nowhere")),
        ("Destination: /dav/other/f", "token", "second_target", ("destination", "PUT", "/dav/other/f")),
        ("Destination: /dav/orgs/a/g", "reader", "scope_denies", ("destination", "PUT", "/dav/orgs/a/g")),
        ("If: </dav/orgs/b/f> (<urn:x>)", "token", "org_mismatch", ("if", "GET", "/dav/orgs/b/f")),
        ("Destination: http://other.example/f", "token", "second_target_invalid", ("destination", None, None)),
        ("x-amz-copy-source: /b/k", "token", "second_target", ("x-amz-copy-source", None, None)),
    ],
)
def test_the_decision_names_the_second_target_and_is_explained_with_it(
    line: str, who: str, reason: str, named: object, node: Patgate, request: pytest.FixtureRequest
) -> None:
    token = request.getfixturevalue(who)
    refusal, event = recorded(node, lambda: ask(node, "COPY", "/dav/orgs/a/f", line, token=token))
    assert refusal.json()["reason"] == event["reason"] == reason
    decision = refusal.json()["decision"]
    with node.control_socket() as control:
        explained = control.call("GET", f"/explain?decision={decision}")
    then, now = explained["then"], explained["now"]
    assert (then["reason"], then["method"], then["path"]) == (reason, "COPY", "/dav/orgs/a/f")
    assert tuple(then["second_target"][key] for key in ("header", "method", "path")) == named
    assert explained["differences"] == []
    if then["second_target"]["path"] is None:
        assert explained["notes"] != []
        return
    assert (now["verdict"], now["reason"], now["second_target"]) == ("refused", reason, then["second_target"])
    assert (now["route"], explained["notes"]) == (then["route"], [])
    assert f"header {then['second_target']['header']} (" in node.run("explain", decision).stdout


def test_a_second_target_that_is_only_reported_is_named_also_when_the_request_is_judged_again(
    node: Patgate, token: Token, recorder: Recorder
) -> None:
    lines = (f"Authorization: Bearer {token.value}", REPORTED, "Content-Length: 2")
    head = "\r\n".join(("COPY /dav/orgs/a/again HTTP/1.1", "Host: dav.example", *lines, "", ""))
    with Connection(node.port) as connection:
        connection.send(head.encode() + b"1")
        # Its body has begun, so a reload checks it again.
        wait_until(lambda: any(recorder.received), "the backend's connection", process=node.process)
        reload(node)
        assert ask(node, "GET", "/dav/orgs/a/f", token=token).status == 200
        connection.send(b"2")
        response = connection.read_response()
    assert response.status == 200
    with node.control_socket() as control:

        def events() -> list[dict[str, Any]]:
            found = events_of(control, "/audit?action=request.read&outcome=reported")
            return [event for event in found if event["details"]["path"] == "/dav/orgs/a/again"]

        wait_until(events, "the event", process=node.process)
        assert events()[0]["details"]["second_target"] == {"header": "if", "method": "GET", "path": "/dav/watched/f"}


def test_a_revoked_token_has_no_second_target_either(node: Patgate, recorder: Recorder) -> None:
    token = mint(node)
    assert ask(node, "COPY", "/dav/orgs/a/f", "Destination: /dav/orgs/a/g", token=token).status == 200
    node.run("token", "revoke", token.id)
    recorder.clear()
    assert ask(node, "COPY", "/dav/orgs/a/f", "Destination: /dav/orgs/a/g", token=token).status == 401
    assert recorder.requests == []


@pytest.mark.parametrize("name", ["Host", "Content-Length", "Authorization", "not a name", ""])
def test_a_header_with_a_meaning_of_its_own_is_no_second_target(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    node = Patgate(tmp_path_factory.mktemp("bad"), {"headers": {"second_targets": [name], "dropped": [name]}})
    done = node.run("check")
    assert done.returncode == 1
    assert "headers.second_targets[0]" in done.stdout + done.stderr
    assert "headers.dropped[0]" in done.stdout + done.stderr


def test_a_route_can_only_pass_on_what_would_be_judged(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = {
        "upstreams": {"app": {"servers": ["http://127.0.0.1:1"]}},
        "routes": [{"path": "/**", "upstream": "app", "access": "public", "second_targets": ["X-Mine"]}],
    }
    node = Patgate(tmp_path_factory.mktemp("bad"), config)
    done = node.run("check")
    assert done.returncode == 1
    assert "routes[0].second_targets[0]" in done.stdout + done.stderr
