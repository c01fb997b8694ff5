"""Threat model §2 with real servers: they run exactly the authorised request and ignore its claims.

gunicorn (with its defaults), waitress, nginx, Node, and Apache with CGI each report how they read a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Final

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.plugin import EDITOR
from tests.support.process import wait_until
from tests.support.rawhttp import Response
from tests.support.realservers import RealServer, believed, told
from tests.threats.cases import CLAIMS, FAMILIES, aliases

BATCH: Final = 80
"""Claims in one request: gunicorn and Apache accept a hundred fields."""

VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    # A prefix of the requested path, which gunicorn removes from the path.
    "path": ("/ui", "/ui/billing", "/billing/invoices"),
    "method": ("DELETE", "PUT"),
    "client": ("203.0.113.9", "for=203.0.113.9"),
    "transport": ("https", "ssl", "on", "evil.example", "http://evil.example:3128"),
    "identity": ("mallory",),
    "request id": ("mallory",),
}
"""The value of each kind of claim, which shows whether a server trusts it."""

_NUMBERS: Final = count()


@pytest.fixture(scope="module")
def token(front: Patgate) -> Token:
    return front.token(EDITOR, name="claims")


def ask(
    front: Patgate, server: RealServer, target: str, extra: str = "", *, token: Token | None = None, method: str = "GET"
) -> Response:
    """One request on a new connection; ``extra`` are field lines."""
    login = f"Authorization: Bearer {token.value}\r\n" if token else ""
    head = f"{method} {target} HTTP/1.1\r\nHost: {server.host}\r\n{login}X-Ordinary: kept\r\n{extra}\r\n"
    with front.connect() as connection:
        return connection.exchange(head.encode("latin-1"))


def unique(path: str) -> str:
    """A path that no other request has: a server may write those of earlier tests only now, after their answers."""
    return f"{path}-{next(_NUMBERS)}"


def reached(front: Patgate, server: RealServer, path: str) -> list[str]:
    """The requests for the path that the server received; waits for a final request of its own."""
    last = unique("/ui/last")
    assert ask(front, server, last).status == 200
    wait_until(lambda: f"GET {last}" in server.requests(), "the last request in the server's own log")
    return [request for request in server.requests() if path in request]


def batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), BATCH):
        yield names[start : start + BATCH]


@pytest.mark.parametrize(
    "name", ["SCRIPT_NAME", "Script_Name", "script_name", "Script-Name", "SCRIPT.NAME", "ScRiPt_NaMe"]
)
@pytest.mark.parametrize(
    ("target", "prefix"),
    [("/ui/billing/invoices", "/ui"), ("/login/billing/invoices", "/login"), ("/v1/things/admin", "/v1/things")],
)
def test_a_script_name_from_the_client_takes_nothing_off_the_path(
    target: str, prefix: str, name: str, server: RealServer, front: Patgate
) -> None:
    """From the loopback, gunicorn trusts SCRIPT_NAME, and its application would run the rest of the path."""
    token = None
    if target.startswith("/v1"):
        token = front.token(EDITOR, name=f"{server.name} {name}", scopes=["things/admin:read"])
    beliefs = believed(ask(front, server, target, f"{name}: {prefix}\r\n", token=token))
    assert beliefs["SCRIPT_NAME"] == ""
    assert beliefs["PATH_INFO"] == target


@pytest.mark.parametrize("name", ["PATH_INFO", "Path-Info", "REQUEST_URI", "Request-Uri", "Path.Info"])
def test_a_path_from_a_header_is_not_run(name: str, server: RealServer, front: Patgate) -> None:
    for value in ("/billing/invoices", "/ui/../billing/invoices", ""):
        beliefs = believed(ask(front, server, "/ui/x", f"{name}: {value}\r\n"))
        assert (beliefs["SCRIPT_NAME"], beliefs["PATH_INFO"]) == ("", "/ui/x")


@pytest.mark.parametrize("kind", CLAIMS)
@pytest.mark.parametrize(
    ("target", "known"), [("/ui/billing/invoices", False), ("/login/x", False), ("/v1/things/1", True)]
)
def test_what_a_server_believes_is_the_same_with_any_claim_of_that_kind(
    target: str, known: bool, kind: str, server: RealServer, front: Patgate, token: Token
) -> None:
    login = token if known else None
    expected = believed(ask(front, server, target, token=login))
    assert expected["PATH_INFO"] == target
    assert expected["REMOTE_USER"] == ""
    passed = []
    for value in VALUES[kind]:
        for names in batches([alias for name in (*CLAIMS[kind], *FAMILIES.get(kind, ())) for alias in aliases(name)]):
            response = ask(front, server, target, "".join(f"{name}: {value}\r\n" for name in names), token=login)
            assert believed(response) == expected, (value, names)
            facts = told(response)
            assert facts["HTTP_X_ORDINARY"] == "kept"
            passed += [name for name, fact in facts.items() if name.startswith("HTTP_") and fact == value]
    assert passed == []


def test_the_identity_that_a_server_is_told_is_ours(server: RealServer, front: Patgate, token: Token) -> None:
    claims = "".join(f"X-Auth-{field}: mallory\r\n" for field in ("User", "Email", "Role", "Org", "Scopes", "Kind"))
    facts = told(ask(front, server, "/v1/things/1", claims, token=token))
    assert facts["HTTP_X_AUTH_EMAIL"] == EDITOR
    assert facts["HTTP_X_AUTH_ROLE"] == "editor"
    assert facts["HTTP_X_AUTH_USER"] not in ("", "mallory")
    # waitress drops these fields by default.
    if server.name != "waitress":
        assert facts["HTTP_X_FORWARDED_FOR"] == "127.0.0.1"
        assert facts["HTTP_X_FORWARDED_PROTO"] == "http"
        assert facts["HTTP_X_FORWARDED_HOST"] == server.host


def test_a_proxy_header_sets_no_environment_variable(server: RealServer, front: Patgate) -> None:
    """Named httpoxy (CVE-2016-5385): CGI sets HTTP_PROXY from it, which programs use as the address of their proxy."""
    for name in ("Proxy", "proxy", "PROXY"):
        facts = told(ask(front, server, "/ui/x", f"{name}: http://evil.example:3128\r\n"))
        assert not facts.get("HTTP_PROXY")


@pytest.mark.parametrize("target", ["/ui/x", "/login/x", "/v1/things/1"])
@pytest.mark.parametrize(
    "place",
    [
        *(
            "PRIVATE-TOKEN: {token}",
            "private-token: {token}",
            "X-Gitlab-Token: {token}",
            "Cookie: a=b; session={token}",
        ),
        *("Cookie: {token}", "X-Other: see {token} there", "Referer: http://h/?t={token}", "X-Auth-Token: {token}"),
    ],
)
def test_a_token_that_stands_elsewhere_reaches_no_server(
    place: str, target: str, server: RealServer, front: Patgate, token: Token
) -> None:
    path, line = unique(target), place.format(token=token.value) + "\r\n"
    for login in (token, None):
        response = ask(front, server, path, line, token=login)
        assert response.status == 400
        assert response.json()["reason"] == "token_misplaced"
    assert reached(front, server, path) == []


@pytest.mark.parametrize(
    "query", ["?private_token={token}", "?a=b&access_token={token}&c=d", "?{token}", "?next=%2Fx%3Ft%3D{token}"]
)
@pytest.mark.parametrize("path", ["/ui/x", "/login/x", "/v1/things/1"])
def test_a_token_in_the_query_reaches_no_server(
    path: str, query: str, server: RealServer, front: Patgate, token: Token
) -> None:
    path = unique(path)
    for login in (token, None):
        response = ask(front, server, path + query.format(token=token.value), token=login)
        assert response.status == 400
        assert response.json()["reason"] == "token_misplaced"
    assert reached(front, server, path) == []
