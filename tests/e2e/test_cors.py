"""CORS through a real gateway: preflights, the browser's view of answers and refusals, and the backend's view."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.operate import reload
from tests.support.plugin import EDITOR, ROLES, VIEWER
from tests.support.pool import Pool
from tests.support.rawhttp import Connection, Response
from tests.support.recorder import Recorded, Recorder

APP, OTHER, STRANGER = "https://app.example.com", "http://localhost:5173", "https://evil.example.com"
ROUTES: list[dict[str, Any]] = [
    {"path": "/public/**", "access": "public"},
    {"path": "/billing/**", "access": "denied"},
    {"path": "/own/{entity}", "cors": {"origins": [OTHER], "credentials": True, "expose": ["ETag"], "max_age": "5m"}},
    {"path": "/pass/{entity}", "cors": {"origins": [APP], "preflight": "pass"}, "methods": ["GET", "PUT"],
     "operations": {"GET": "list", "PUT": "update"}},
    {"path": "/closed/{entity}", "methods": ["OPTIONS"], "access": "denied"},
    {"path": "/closed/{entity}", "cors": {"origins": [APP], "preflight": "pass"}},
    {"path": "/off/{entity}", "cors": {"origins": []}, "operations": {"GET": "list", "OPTIONS": "list"}},
    {"path": "/any/{entity}", "cors": {"origins": ["*"]}},
    {"path": "/null/{entity}", "cors": {"origins": ["null"]}},
    {"path": "/v1/{entity}"},
    {"path": "/v1/{entity}/{id}"},
]  # fmt: skip
CONFIG = {
    "workers": 1,
    "listen": {"forward_auth": {"trusted": ["127.0.0.1/32"]}},
    "roles": ROLES,
    "routes": [{"upstream": "app"} | route for route in ROUTES],
    "cors": [{"host": "gateway", "origins": [APP, OTHER]}],
}
NAMES = (
    "Access-Control-Allow-Origin", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers",
    "Access-Control-Allow-Credentials", "Access-Control-Expose-Headers", "Access-Control-Max-Age", "Vary",
)  # fmt: skip
EXPOSED = "WWW-Authenticate, X-Request-Id, Retry-After"


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    with gateways.lend(CONFIG | {"upstreams": {"app": {"servers": [backend.url]}}}) as lent:
        lent.add_user(EDITOR, "editor")
        lent.add_user(VIEWER, "viewer")
        yield lent


@pytest.fixture(scope="module")
def token(node: Patgate) -> Token:
    return node.token(EDITOR, name="cors")


def ask(node: Patgate, method: str, target: str, *lines: str, host: str = "gateway") -> Response:
    head = "\r\n".join((f"{method} {target} HTTP/1.1", f"Host: {host}", *lines, "", ""))
    with node.connect() as connection:
        return connection.exchange(head.encode("latin-1"))


def preflight(node: Patgate, target: str, origin: str, method: str = "GET", host: str = "gateway") -> Response:
    asked = (f"Access-Control-Request-Method: {method}", "Access-Control-Request-Headers: authorization")
    return ask(node, "OPTIONS", target, f"Origin: {origin}", *asked, host=host)


def seen(response: Response) -> dict[str, str]:
    """The CORS fields of a response, each of which occurs once."""
    return {name: value for name in NAMES if (value := response.get(name)) is not None}


@pytest.mark.parametrize("target", ["/v1/things", "/v1/things/7", "/public/x", "/billing/x", "/nowhere"])
def test_a_preflight_is_answered_without_a_token_and_without_the_backend(
    target: str, node: Patgate, recorder: Recorder
) -> None:
    """Also where the request that follows will be refused, so that the page's code can read why."""
    for origin in (APP, OTHER):
        response = preflight(node, target, origin, "PUT")
        assert (response.status, response.body) == (204, b"")
        assert seen(response) == {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
            "Access-Control-Allow-Headers": "Authorization, X-API-Key, Content-Type",
            "Access-Control-Max-Age": "600",
            "Vary": "Origin",
        }
        assert response.get("X-Request-Id")
        assert response.get("Content-Length") is None
    assert recorder.requests == []


def test_several_preflights_and_requests_share_a_connection(node: Patgate, recorder: Recorder, token: Token) -> None:
    with node.connect() as connection:
        for _ in range(3):
            lines = {"Origin": APP, "Access-Control-Request-Method": "GET"}
            assert connection.request("OPTIONS", "/v1/things", headers=lines).status == 204
            response = connection.request("GET", "/v1/things", headers={"Origin": APP, **token.bearer})
            assert (response.status, response.get("Access-Control-Allow-Origin")) == (200, APP)


@pytest.mark.parametrize("origin", [STRANGER, "null", APP + "/", APP.upper(), APP + ":443", "*", APP + ", " + APP])
def test_an_origin_that_is_not_listed_is_refused_by_name_and_never_repeated(
    origin: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    response = preflight(node, "/v1/things", origin)
    assert (response.status, response.json()["reason"]) == (403, "origin_refused")
    assert seen(response) == {"Vary": "Origin"}
    allowed = ask(node, "GET", "/v1/things", f"Origin: {origin}", f"Authorization: Bearer {token.value}")
    assert (allowed.status, seen(allowed)) == (200, {"Vary": "Origin"})
    for answer in (response, allowed):
        assert origin == "*" or not any(origin.encode() in value for _, value in answer.headers)
    assert [request.only("Origin") for request in recorder.requests] == [origin]


@pytest.mark.parametrize(
    ("method", "target", "login", "reason"),
    [
        ("GET", "/v1/things", "", "no_credential"),
        ("GET", "/v1/things", "Authorization: Bearer acme_pat_x", "invalid_token"),
        ("DELETE", "/v1/things/7", "Authorization: Bearer {viewer}", "role_denies"),
        ("GET", "/nowhere", "", "no_route"),
        ("GET", "/billing/x", "", "route_denied"),
        ("GET", "/v1/../things", "", "target_not_canonical"),
        ("GET", "/v1/things", "Authorization: Bearer a\r\nX-API-Key: b", "credential_ambiguous"),
        ("GET", "/v1/things", "Cookie: t={viewer}", "token_misplaced"),
    ],
)
def test_a_pages_code_can_read_patgates_own_refusals(
    method: str, target: str, login: str, reason: str, node: Patgate, recorder: Recorder
) -> None:
    line = login.replace("{viewer}", node.token(VIEWER).value)
    response = ask(node, method, target, f"Origin: {APP}", *([line] if line else []))
    assert response.json()["reason"] == reason
    assert seen(response) == {
        "Access-Control-Allow-Origin": APP,
        "Access-Control-Expose-Headers": EXPOSED,
        "Vary": "Origin",
    }
    assert recorder.requests == []


@pytest.mark.parametrize("origin", [APP, STRANGER, ""])
@pytest.mark.parametrize("target", ["/v1/things", "/public/x"])
def test_patgates_fields_replace_the_backends_where_it_answers_preflights(
    target: str, origin: str, node: Patgate, recorder: Recorder, token: Token
) -> None:
    def theirs(request: Recorded) -> bytes:
        return (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVary: Accept\r\naccess-control-allow-origin: *\r\n"
            b"Access-Control-Allow-Credentials: true\r\nAccess-Control-Expose-Headers: X-Theirs\r\n"
            b"X-Theirs: 1\r\n\r\nok"
        )

    recorder.script = theirs
    lines = (f"Authorization: Bearer {token.value}",) + ((f"Origin: {origin}",) if origin else ())
    response = ask(node, "GET", target, *lines)
    allowed = {"Access-Control-Allow-Origin": APP, "Access-Control-Expose-Headers": EXPOSED} if origin == APP else {}
    assert response.all("Vary") == ["Accept", "Origin"]
    assert seen_without_vary(response) == allowed
    assert (response.get("X-Theirs"), response.body) == ("1", b"ok")


def seen_without_vary(response: Response) -> dict[str, str]:
    return {name: value for name in NAMES[:-1] if (value := response.get(name)) is not None}


def test_a_streamed_answer_of_the_backend_has_the_fields_too(node: Patgate, recorder: Recorder, token: Token) -> None:
    recorder.script = lambda _: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    response = ask(node, "GET", "/v1/things", f"Origin: {APP}", f"Authorization: Bearer {token.value}")
    assert (response.body, response.get("Access-Control-Allow-Origin"), response.get("Vary")) == (b"ok", APP, "Origin")


def test_a_route_has_a_policy_of_its_own_or_none(node: Patgate, recorder: Recorder, token: Token) -> None:
    assert preflight(node, "/own/things", APP).json()["reason"] == "origin_refused"
    own = preflight(node, "/own/things", OTHER)
    assert (own.get("Access-Control-Allow-Credentials"), own.get("Access-Control-Max-Age")) == ("true", "300")
    login = f"Authorization: Bearer {token.value}"
    assert seen(ask(node, "GET", "/own/things", f"Origin: {OTHER}", login)) == {
        "Access-Control-Allow-Origin": OTHER,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Expose-Headers": "ETag",
        "Vary": "Origin",
    }
    assert preflight(node, "/null/things", "null").get("Access-Control-Allow-Origin") == "null"
    assert preflight(node, "/any/things", STRANGER).get("Access-Control-Allow-Origin") == "*"
    assert seen(ask(node, "GET", "/any/things", login)) == {}
    another_site = preflight(node, "/v1/things", APP, host="other.example")
    assert (another_site.status, seen(another_site)) == (401, {})
    recorder.clear()
    refused = preflight(node, "/off/things", APP)
    assert (refused.status, refused.json()["reason"], seen(refused)) == (401, "no_credential", {})
    assert ask(node, "OPTIONS", "/off/things", f"Origin: {APP}", login).status == 200
    assert len(recorder.requests) == 1


def test_a_preflight_passes_without_identity_where_the_backend_answers_it(
    node: Patgate, recorder: Recorder, token: Token
) -> None:
    recorder.script = lambda _: b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: *\r\nVary: Accept\r\n\r\n"
    for origin in (APP, STRANGER):
        response = preflight(node, "/pass/things", origin, "PUT")
        assert (response.status, seen(response)) == (204, {"Access-Control-Allow-Origin": "*", "Vary": "Accept"})
        request = recorder.last()
        assert request.request_line == b"OPTIONS /pass/things HTTP/1.1"
        assert (request.only("X-Auth-User"), request.only("X-Auth-Role"), request.only("Origin")) == ("", "", origin)
        assert request.only("Access-Control-Request-Method") == "PUT"
    recorder.clear()
    # POST is no method of the route: the route that would serve the request decides, and there is none.
    assert preflight(node, "/pass/things", APP, "POST").status == 204  # answered for the site, not by the backend
    assert preflight(node, "/pass/things", APP, "put").status == 204
    assert recorder.requests == []
    refused = ask(node, "GET", "/pass/things", f"Origin: {APP}")
    assert (refused.status, refused.get("Access-Control-Allow-Origin")) == (401, APP)


def test_a_preflight_does_not_pass_where_the_method_that_runs_is_denied(node: Patgate, recorder: Recorder) -> None:
    """The route of the method that a preflight names is another one than that of OPTIONS, which the backend runs."""
    refused = preflight(node, "/closed/things", APP)
    assert (refused.status, refused.json()["reason"]) == (403, "route_denied")
    lines = (f"Origin: {APP}", "Access-Control-Request-Method: GET")
    assert described(node, "OPTIONS", "/closed/things", *lines).json()["reason"] == "route_denied"
    assert recorder.requests == []


@pytest.mark.parametrize(
    "lines",
    [
        ("Origin: " + APP,),
        ("Access-Control-Request-Method: GET",),
        ("Origin: " + APP, "Access-Control-Request-Method: GET", "Authorization: Bearer x"),
        ("Origin: " + APP, "Access-Control-Request-Method: GET", "X-API-Key: x"),
        ("Origin: " + APP, "Access-Control-Request-Method: GET", "Content-Length: 1"),
        ("Origin: " + APP, "Access_Control_Request_Method: GET"),
        ("Origin: " + APP, "Access-Control-Request-Method: \xff"),
        ("Origin: " + APP, "Access-Control-Request-Method: GET,PUT"),
        ("Origin: " + APP, "Access-Control-Request-Method:"),
    ],
)
@pytest.mark.parametrize("target", ["/v1/things", "/pass/things"])
def test_what_no_browser_sends_as_a_preflight_needs_a_token(
    target: str, lines: tuple[str, ...], node: Patgate, recorder: Recorder
) -> None:
    response = ask(node, "OPTIONS", target, *lines)
    assert response.status in (401, 403)
    assert recorder.requests == []
    assert ask(node, "GET", "/v1/things", *lines[:2]).status == 401


@pytest.mark.parametrize("name", ["Origin", "access-control-request-method"])
def test_a_preflight_cannot_remove_what_makes_it_one(name: str, node: Patgate, recorder: Recorder) -> None:
    """Without the field, the backend would run an OPTIONS request of nobody that is no preflight."""
    lines = (f"Origin: {APP}", "Access-Control-Request-Method: GET", f"Connection: {name}")
    for target in ("/v1/things", "/pass/things"):
        assert ask(node, "OPTIONS", target, *lines).status == 400
    assert recorder.requests == []


def test_a_preflight_with_a_token_elsewhere_is_refused(node: Patgate, recorder: Recorder, token: Token) -> None:
    lines = (f"Origin: {APP}", "Access-Control-Request-Method: GET", f"Cookie: t={token.value}")
    for target in ("/v1/things", "/pass/things"):
        assert ask(node, "OPTIONS", target, *lines).json()["reason"] in ("token_misplaced", "no_route")
    assert ask(node, "OPTIONS", "/v1/things?t=" + token.value, *lines[:2]).json()["reason"] == "token_misplaced"
    assert recorder.requests == []


def described(node: Patgate, method: str, target: str, *lines: str) -> Response:
    shape = (f"X-Forwarded-Method: {method}", f"X-Forwarded-Uri: {target}", "X-Forwarded-Host: gateway")
    head = "\r\n".join(("GET /traefik HTTP/1.1", "Host: patgate", *shape, *lines, "", ""))
    with Connection(node.forward_auth_port) as connection:
        return connection.exchange(head.encode("latin-1"))


def test_in_forward_auth_no_answered_preflight_reaches_the_application(node: Patgate) -> None:
    """An ingress takes 204 as permission, so such a preflight needs a token; one that passes is allowed as nobody."""
    lines = (f"Origin: {APP}", "Access-Control-Request-Method: PUT")
    response = described(node, "OPTIONS", "/off/things", *lines)
    assert response.status == 401
    response = described(node, "OPTIONS", "/v1/things", *lines)
    assert (response.status, response.get("Access-Control-Allow-Origin")) == (401, APP)
    passed = described(node, "OPTIONS", "/pass/things", *lines)
    assert (passed.status, passed.get("X-Auth-User"), passed.get("X-Auth-Role")) == (200, "", "")
    refused = described(node, "PUT", "/pass/things", *lines)
    assert (refused.status, refused.get("Access-Control-Allow-Origin")) == (401, APP)


def test_a_reload_changes_places_challenges_and_origins(gateways: Pool, backend: Recorder, recorder: Recorder) -> None:
    route = {"path": "/v1/{entity}", "upstream": "app"}
    config = {"workers": 1, "upstreams": {"app": {"servers": [backend.url]}}, "roles": ROLES, "routes": [route]}
    with gateways.lend(config) as node:
        node.add_user(EDITOR, "editor")
        value, before = node.token(EDITOR).value, dict(node.config)
        lines = (f"Authorization: Bearer {value}", f"X-API-Key: {value}", f"PRIVATE-TOKEN: {value}")
        steps: list[tuple[dict[str, Any], list[int], str, str | None]] = [
            ({}, [200, 200, 400], "Bearer", None),
            ({"routes": [route | {"credentials": ["x-api-key"]}]}, [401, 200, 400], "Header", None),
            ({"credentials": [{"header": "PRIVATE-TOKEN"}, "bearer"]}, [200, 400, 200], "Bearer", None),
            (
                {"routes": [route | {"challenge": ["basic"]}], "cors": [{"origins": [APP]}]},
                [200, 200, 400], "Basic", APP,
            ),
            ({}, [200, 200, 400], "Bearer", None),
        ]  # fmt: skip
        with node.connect() as connection:
            for changed, statuses, offered, allowed in steps:
                node.begin(before | changed)
                reload(node)
                for _ in range(2):
                    heads = [f"GET /v1/things HTTP/1.1\r\nHost: g\r\n{line}\r\n\r\n" for line in lines]
                    assert [connection.exchange(head.encode()).status for head in heads] == statuses, changed
                response = connection.request("GET", "/v1/things", headers={"Origin": APP})
                assert response.all("WWW-Authenticate")[0].split()[0] == offered
                assert response.get("Access-Control-Allow-Origin") == allowed
