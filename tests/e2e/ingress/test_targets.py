"""The request that patgate judges is the request that the application gets: target, method, host and query."""

from __future__ import annotations

import pytest

from tests.e2e.ingress.matrix import Row
from tests.support.gateway import Patgate, Token
from tests.support.ingress import Ingress
from tests.support.rawhttp import Connection, ConnectionEnded, Response
from tests.support.recorder import Recorder

FORGED_TARGETS = (
    *("X-Original-URL", "X-Original-URI", "X-Original-Path", "X-Rewrite-URL", "X-Forwarded-Uri", "X-Forwarded-Path"),
    *("X-Forwarded-Prefix", "X-Envoy-Original-Path", "X-Replaced-Path", "Path", "Request-Uri", "Path-Info"),
    *("Script-Name", "X-Accel-Redirect", "Location", "Content-Location", "Referer"),
)
"""Headers in which a client names another target."""

FORGED_METHODS = (
    *("X-Original-Method", "X-Forwarded-Method", "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"),
    *("Method", "Request-Method"),
)
"""Headers in which a client names another method."""

FORGED_HOSTS = ("X-Forwarded-Host", "X-Original-Host", "X-Host", "X-HTTP-Host-Override", "Forwarded", "X-Real-Host")
"""Headers in which a client names another host."""

ODD_PATHS = (
    *("/public/../billing/x", "/public/./x", "//public/x", "/public//x", "/public/x/..", "/public/.", "/./public/x"),
    *("/%2e%2e/billing/x", "/public/%2e%2e/billing/x", "/public/%2E./billing/x", "/public/.%2e/billing/x"),
    *(
        "/public/x%2F..%2Fbilling",
        "/public%2Fx",
        "/public/x%5c..%5cbilling",
        "/public/x\\..\\billing",
        "/public/a;x=y/b",
    ),
    *("/public/..;/billing/x", "/public/%00", "/public/x%00.html", "/public/%252e%252e/billing", "/public/%c0%af"),
    *("/public/\xff", "/public/x#/billing/x", "/public/%zz", "/public/%", "/public/%4", "/p%75blic/x", "/public/a%7Eb"),
    *("/public/%41", "/public/%C3%A4", "/PUBLIC/x", "/Billing/x", "/billing%2Fx", "/v1/../billing/x", "/healthz/"),
    *(
        "/healthz%20",
        "/healthz%2f",
        "/healthz?/../billing/x",
        "/public/ x",
        "/public/\tx",
        "/public/x%20y",
        "/public/+",
    ),
    *("*", "public/x", "", "http:/public/x", "http://gateway", "/public/a%2fb%2e%2e/c"),
)
"""Targets that servers read in different ways; anyone may have /public and nobody /billing."""


def ask(ingress: Ingress, method: str, target: str, host: str = "gateway", extra: str = "") -> Response | None:
    """The response; None if the ingress ends the connection instead."""
    head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n"
    with Connection(ingress.port) as connection:
        try:
            return connection.exchange(head.encode("latin-1"), method=method)
        except (ConnectionEnded, ConnectionResetError):
            return None


@pytest.mark.row(Row.FORGED)
@pytest.mark.parametrize("name", [*FORGED_TARGETS, *FORGED_METHODS])
def test_no_header_with_another_target_or_method_turns_a_refusal_into_more(
    name: str, ingress: Ingress, behind: Recorder, viewer: Token
) -> None:
    """A viewer may not update, nobody may use /billing, and /v1 needs a token."""
    spellings = dict.fromkeys((name, name.lower(), name.upper(), name.replace("-", "_"), name.replace("-", ".")))
    value = "/healthz" if name in FORGED_TARGETS else "GET"
    login = f"Authorization: Bearer {viewer.value}\r\n"
    for lines in [*(f"{spelling}: {value}\r\n" for spelling in spellings), f"{name}: {value}\r\n{name}: {value}\r\n"]:
        for status, method, target, fields in (
            (403, "PUT", "/v1/things/1", login + "Content-Length: 0\r\n"),
            (403, "GET", "/billing/x", login),
            (401, "GET", "/v1/things/1", ""),
        ):
            response = ask(ingress, method, target, extra=fields + lines)
            assert response is not None
            assert response.status in (status, 400), lines
    assert behind.requests == []


@pytest.mark.row(Row.FORGED)
@pytest.mark.parametrize("name", FORGED_HOSTS)
def test_no_header_with_another_host_changes_the_route(name: str, ingress: Ingress, behind: Recorder) -> None:
    for spelling in dict.fromkeys((name, name.lower(), name.upper(), name.replace("-", "_"), name.replace("-", "."))):
        for host in ("open.example", "open.example:80", "host=open.example"):
            response = ask(ingress, "GET", "/hosts/x", "closed.example", f"{spelling}: {host}\r\n")
            assert response is not None
            assert response.status in (400, 403), spelling
    assert behind.requests == []


@pytest.mark.row(Row.HOSTS)
@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        *(("open.example", True), ("OPEN.example", True), ("open.example:8443", True), ("closed.example", False)),
        *(("elsewhere.example", False), ("open.example.", None), ("open.example, closed.example", False)),
        *(("closed.example,open.example", False), ("closed.example, open.example", False)),
        *(("closed.example@open.example", False), ("open.example/..", False), ("", False), ("open_example", False)),
    ],
)
def test_a_route_with_a_host_is_for_that_host(
    host: str, allowed: bool | None, ingress: Ingress, behind: Recorder
) -> None:
    response = ask(ingress, "GET", "/hosts/x", host)
    if allowed or (allowed is None and response is not None and response.status == 200):
        assert response is not None
        assert response.status == 200
        arrived = behind.last().only("Host").lower()
        assert arrived.partition(":")[0].rstrip(".") == "open.example"
    else:
        assert response is None or 400 <= response.status < 500
        assert behind.requests == []


@pytest.mark.row(Row.HOSTS)
def test_two_host_fields_are_refused(ingress: Ingress, behind: Recorder) -> None:
    for first, second in (("open.example", "closed.example"), ("closed.example", "open.example")):
        response = ask(ingress, "GET", "/hosts/x", first, f"Host: {second}\r\n")
        assert response is None or response.status in (400, 403)
    assert behind.requests == []


@pytest.mark.row(Row.ABSOLUTE)
@pytest.mark.parametrize("target", ["http://closed.example/hosts/x", "HTTP://closed.example/hosts/x"])
@pytest.mark.parametrize("host", ["open.example", "open.example:80"])
def test_a_url_for_a_closed_host_is_refused_whatever_host_stands_beside_it(
    target: str, host: str, ingress: Ingress, behind: Recorder
) -> None:
    response = ask(ingress, "GET", target, host)
    assert response is None or response.status in (400, 403, 404)
    assert behind.requests == []


@pytest.mark.row(Row.ABSOLUTE)
@pytest.mark.parametrize("scheme", ["http", "HTTP", "https", "Https", "ftp", "ws", "x"])
def test_of_a_url_only_the_path_arrives(scheme: str, ingress: Ingress, behind: Recorder) -> None:
    """Servers disagree about the path of a URL whose scheme they do not know."""
    response = ask(ingress, "GET", f"{scheme}://gateway/public/x?y=z")
    if response is not None and response.status == 200:
        assert behind.last().target == b"/public/x?y=z"
    else:
        assert response is None or response.status in (400, 403, 404)
        assert behind.requests == []


@pytest.mark.row(Row.ABSOLUTE)
@pytest.mark.parametrize(
    "target", ["http://gateway/billing/x", "https://gateway/billing/x", "http://gateway/public/../billing/x"]
)
def test_a_url_of_a_denied_path_is_refused(target: str, ingress: Ingress, behind: Recorder) -> None:
    response = ask(ingress, "GET", target)
    assert response is None or response.status in (400, 403, 404)
    assert behind.requests == []


@pytest.mark.row(Row.PATHS)
@pytest.mark.parametrize("target", ODD_PATHS)
def test_a_path_that_arrives_is_one_that_patgate_allows_as_it_arrives(
    target: str, ingress: Ingress, behind: Recorder, asked: Patgate
) -> None:
    """Whatever an ingress makes of a path before it asks, the application gets what was judged."""
    response = ask(ingress, "GET", target)
    if response is None or response.status != 200:
        assert response is None or 400 <= response.status < 500
        assert behind.requests == []
        return
    arrived = behind.last().target
    if not ingress.cleans_paths:
        # Of a URL only the path arrives, and what "#" begins is cut off or encoded.
        path = target.removeprefix("http:").removeprefix("//gateway")
        assert arrived.decode("latin-1") in (path, path.partition("#")[0], path.replace("#", "%23"), "/" + path)
    assert not arrived.lower().startswith(b"/billing")
    call = {"X-Original-Method": "GET", "X-Original-URI": arrived.decode("latin-1")}
    with Connection(asked.forward_auth_port) as connection:
        assert connection.request("GET", "/nginx", headers=call).status == 200, arrived


@pytest.mark.row(Row.QUERIES)
@pytest.mark.parametrize(
    "query",
    [
        *("?a=1&a=2&b=%2F&c=%41&d=a+b", "?", "?a", "?a=b?c=d", "?next=/../billing/x", "?a=%2e%2e%2f", "?%C3%A4=%zz"),
        *("?a=b;c=d", "?a[]=1&a[]=2", "?a=\\&b=|^", "?uri=/healthz&X-Original-URI=/healthz", "?/../../billing/x"),
    ],
)
def test_a_query_arrives_as_it_was_sent(query: str, ingress: Ingress, behind: Recorder) -> None:
    response = ask(ingress, "GET", "/public/x" + query)
    assert response is not None
    if response.status == 200:
        arrived = behind.last().target
        sent = query.replace(";", "%3B") if ingress.encodes_semicolons else query
        assert arrived == f"/public/x{sent}".encode() or (query == "?" and arrived == b"/public/x")
    else:
        assert response.status == 400
        assert query in ("?a=\\&b=|^", "?%C3%A4=%zz", "?a=b;c=d")
        assert behind.requests == []


@pytest.mark.row(Row.QUERIES)
@pytest.mark.parametrize("query", ["?/public/x", "?path=/public/x", "?x=/../public/x", "?X-Forwarded-Uri=/public/x"])
def test_a_query_opens_nothing(query: str, ingress: Ingress, behind: Recorder, viewer: Token) -> None:
    login = f"Authorization: Bearer {viewer.value}\r\n"
    for status, target in ((403, "/billing/x"), (401, "/v1/things/1")):
        response = ask(ingress, "GET", target + query, extra=login if status == 403 else "")
        assert response is not None
        assert response.status == status
    assert behind.requests == []
