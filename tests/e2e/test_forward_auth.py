"""The forward-auth listener, called directly in the shape of each ingress."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.plugin import EDITOR, VIEWER
from tests.support.rawhttp import Connection, Response

IDENTITY = ("User", "Email", "Org", "Role", "Scopes", "Token", "Token-Name", "Kind")
TARGET = "/v1/things/42"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A valid call of an ingress: the path it requests, the headers it adds, and those that are ``required``."""

    path: str
    headers: tuple[tuple[str, str], ...]
    required: tuple[str, ...]
    method: str = "GET"
    bounded: bool = False
    """Whether the ingress understands only 2xx, 401 and 403: refusals with another status then come as 403."""

    def wire(self, status: int) -> int:
        """The status of the response to a call whose verdict has this status."""
        return 403 if self.bounded and status != 401 else status


ORIGINAL = (("X-Original-Method", "GET"), ("X-Original-URI", TARGET))
FORWARDED = (
    ("X-Forwarded-Method", "GET"),
    ("X-Forwarded-Uri", TARGET),
    ("X-Forwarded-Host", "app.example.org"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-For", "192.0.2.7"),
)
URL = (
    ("X-Original-Method", "GET"),
    ("X-Original-URL", "https://app.example.org" + TARGET),
    ("X-Forwarded-For", "192.0.2.7"),
    ("X-Sent-From", "nginx-ingress-controller"),
    ("X-Auth-Request-Redirect", TARGET),
)
FABRIC = (("Method", "GET"), ("Path", TARGET))
NEEDED = ("X-Forwarded-Method", "X-Forwarded-Uri", "X-Forwarded-Host")

SHAPES = {
    "nginx": Shape(path="/nginx", headers=ORIGINAL, required=("X-Original-Method", "X-Original-URI"), bounded=True),
    "ingress-nginx": Shape(
        path="/ingress-nginx", headers=URL, required=("X-Original-Method", "X-Original-URL"), bounded=True
    ),
    "ingress-nginx with auth-method": Shape(
        path="/ingress-nginx",
        headers=(*URL, ("X-Original-URI", TARGET), ("X-Scheme", "https")),
        required=("X-Original-Method", "X-Original-URL"),
        bounded=True,
    ),
    "NGINX Gateway Fabric": Shape(
        path="/nginx-gateway-fabric", headers=FABRIC, required=("Method", "Path"), bounded=True
    ),
    "haproxy": Shape(path="/haproxy", headers=FORWARDED, required=NEEDED),
    "traefik": Shape(path="/traefik", headers=FORWARDED, required=NEEDED),
    "caddy": Shape(path="/caddy", headers=FORWARDED, required=NEEDED),
    "caddy with a query": Shape(path="/caddy?page=2&uri=/healthz", headers=FORWARDED, required=NEEDED),
    "any, as nginx": Shape(path="/", headers=ORIGINAL, required=("X-Original-Method", "X-Original-URI")),
    "any, as Authelia's nginx": Shape(path="/", headers=URL[:2], required=("X-Original-Method", "X-Original-URL")),
    "any, as traefik": Shape(path="/", headers=FORWARDED, required=NEEDED),
    "envoy": Shape(path="/envoy" + TARGET, headers=(), required=()),
}
METHODS = ("", "G ET", "GET,GET", "GET\tX", "{}")
TARGETS = ("", "v1/things/42", "/v1/../billing/x", "//v1/things/42", "/v1/things/%zz", "*", "/v1/things/42#x")
CORRUPTIONS = {
    "X-Original-Method": METHODS,
    "X-Forwarded-Method": METHODS,
    "Method": METHODS,
    "X-Original-URI": TARGETS,
    "X-Forwarded-Uri": TARGETS,
    "Path": TARGETS,
    "X-Original-URL": (
        *TARGETS,
        TARGET,
        "//app.example.org" + TARGET,
        "ftp://app.example.org" + TARGET,
        "https://usr@app.example.org" + TARGET,
        "https://app.example.org" + TARGET + "#x",
        "https://app.example.org/v1/../billing/x",
        "https://app..example.org" + TARGET,
        "https://app.example.org",
    ),
    "X-Forwarded-Host": ("", "a/b", "a@b", "a b"),
}


@pytest.fixture(scope="module")
def editor(gateway: Patgate) -> Token:
    return gateway.token(EDITOR, name="forward auth")


@pytest.fixture(scope="module")
def viewer(gateway: Patgate) -> Token:
    return gateway.token(VIEWER, name="forward auth")


def ask(
    gateway: Patgate,
    shape: Shape,
    headers: list[tuple[str, str]],
    *,
    source: str | None = None,
    method: str | None = None,
    host: str = "app.example.org",
) -> Response:
    lines = [f"{method or shape.method} {shape.path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers]
    with Connection(gateway.forward_auth_port, source=source) as connection:
        return connection.exchange(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))


def login(token: Token) -> list[tuple[str, str]]:
    return list(token.bearer.items())


@pytest.mark.parametrize("name", SHAPES)
def test_a_good_call_is_answered_200_with_every_identity_header(name: str, gateway: Patgate, editor: Token) -> None:
    shape = SHAPES[name]
    response = ask(gateway, shape, [*shape.headers, *login(editor)])
    assert response.status == 200, response.body
    for field in IDENTITY:
        assert len(response.all(f"X-Auth-{field}")) == 1, field
    assert response.get("X-Auth-Email") == EDITOR
    assert response.get("X-Auth-Org") == ""
    assert response.get("X-Auth-Token") == editor.prefix
    assert response.get("X-Request-Id")
    assert response.get("Cache-Control") == "no-store"


@pytest.mark.parametrize("name", SHAPES)
def test_no_credential_is_refused_with_the_challenge_and_a_problem(name: str, gateway: Patgate) -> None:
    shape = SHAPES[name]
    response = ask(gateway, shape, list(shape.headers))
    assert response.status == 401
    challenges = response.all("WWW-Authenticate")
    assert any(challenge.startswith('Bearer realm="acme"') for challenge in challenges)
    assert response.get("Content-Type") == "application/problem+json"
    assert response.get("Cache-Control") == "no-store"
    assert not any(response.all(f"X-Auth-{field}") for field in IDENTITY)


@pytest.mark.parametrize("name", SHAPES)
def test_an_untrusted_peer_is_refused_with_a_good_call(name: str, gateway: Patgate, editor: Token) -> None:
    """127.0.0.2 belongs to this machine but is not in ``trusted``."""
    shape = SHAPES[name]
    response = ask(gateway, shape, [*shape.headers, *login(editor)], source="127.0.0.2")
    assert response.status == 403
    assert response.json()["reason"] == "peer_untrusted"


@pytest.mark.parametrize(
    ("name", "header"), [(name, header) for name, shape in SHAPES.items() for header in shape.required]
)
def test_a_call_without_one_of_its_headers_is_refused(name: str, header: str, gateway: Patgate, editor: Token) -> None:
    shape = SHAPES[name]
    rest = [(key, value) for key, value in shape.headers if key != header]
    response = ask(gateway, shape, [*rest, *login(editor)])
    assert (response.status, response.json()["status"]) == (shape.wire(400), 400)


@pytest.mark.parametrize(
    ("name", "header"), [(name, header) for name, shape in SHAPES.items() for header in shape.required]
)
def test_a_call_with_one_of_its_headers_twice_is_refused(
    name: str, header: str, gateway: Patgate, editor: Token
) -> None:
    shape = SHAPES[name]
    twice = [*shape.headers, *((key, value) for key, value in shape.headers if key == header)]
    response = ask(gateway, shape, [*twice, *login(editor)])
    assert (response.status, response.json()["status"]) == (shape.wire(400), 400)


@pytest.mark.parametrize(
    ("name", "header", "value"),
    [
        (name, header, value)
        for name, shape in SHAPES.items()
        for header in shape.required
        for value in CORRUPTIONS[header]
    ],
)
def test_a_call_with_a_corrupt_header_is_refused(
    name: str, header: str, value: str, gateway: Patgate, editor: Token
) -> None:
    shape = SHAPES[name]
    corrupt = [(key, value if key == header else good) for key, good in shape.headers]
    response = ask(gateway, shape, [*corrupt, *login(editor)])
    assert (response.status, response.json()["status"]) == (shape.wire(400), 400)


@pytest.mark.parametrize("name", SHAPES)
def test_a_refusal_carries_its_parts_in_headers(name: str, gateway: Patgate) -> None:
    """An ingress that loses the body, or the status, can build the same response from them."""
    shape = SHAPES[name]
    for credential, status in ((None, 401), ("Bearer nonsense", 401), ("Basic", 400)):
        login = [] if credential is None else [("Authorization", credential)]
        response = ask(gateway, shape, [*shape.headers, *login])
        problem = response.json()
        assert (response.status, problem["status"]) == (shape.wire(status), status)
        for part in ("status", "title", "detail", "reason", "decision"):
            assert response.get(f"X-Patgate-{part}") == str(problem[part])
        assert [response.get(f"X-Patgate-Challenge-{at}") for at in (1, 2, 3)][
            : len(response.all("WWW-Authenticate"))
        ] == response.all("WWW-Authenticate")


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if "X-Original-URL" not in shape.required])
def test_a_call_that_another_url_contradicts_is_refused(name: str, gateway: Patgate, editor: Token) -> None:
    shape = SHAPES[name]
    for url in (
        f"https://app.example.org{TARGET}",
        "https://app.example.org/healthz",
        f"https://other.example{TARGET}",
    ):
        response = ask(gateway, shape, [*shape.headers, ("X-Original-URL", url), *login(editor)])
        agrees = url.endswith("app.example.org" + TARGET) and not name.startswith("any")
        assert response.status == (200 if agrees else shape.wire(400)), url


def test_a_call_by_url_that_another_target_contradicts_is_refused(gateway: Patgate, editor: Token) -> None:
    shape = SHAPES["ingress-nginx"]
    for lie in (("X-Original-URI", "/healthz"), ("X-Forwarded-Uri", "/healthz"), ("X-Forwarded-Method", "PUT")):
        assert ask(gateway, shape, [*shape.headers, lie, *login(editor)]).status == 403, lie


@pytest.mark.parametrize("header", [header for header, _ in FORWARDED])
@pytest.mark.parametrize("change", ["deleted", "emptied", "repeated", "corrupted"])
def test_no_change_to_one_forwarded_header_widens_a_verdict(
    header: str, change: str, gateway: Patgate, viewer: Token
) -> None:
    """A viewer may not update, and no change to a single header turns that refusal into a 2xx."""
    call = dict(FORWARDED) | {"X-Forwarded-Method": "PUT"}
    headers = list(call.items())
    match change:
        case "deleted":
            headers = [(key, value) for key, value in headers if key != header]
        case "emptied":
            headers = [(key, "" if key == header else value) for key, value in headers]
        case "repeated":
            headers.append((header, {"X-Forwarded-Method": "GET", "X-Forwarded-Uri": "/healthz"}.get(header, "x")))
        case _:
            headers = [(key, "\x7f" if key == header else value) for key, value in headers]
    assert ask(gateway, SHAPES["traefik"], [*headers, *login(viewer)]).status in (400, 403)


@pytest.mark.parametrize("path", ["/", "/?x=1"])
def test_both_families_at_once_are_refused_where_the_shape_is_not_named(
    path: str, gateway: Patgate, editor: Token
) -> None:
    response = ask(gateway, Shape(path=path, headers=(), required=()), [*ORIGINAL, *FORWARDED, *login(editor)])
    assert response.status == 400


def test_neither_family_is_refused(gateway: Patgate, editor: Token) -> None:
    assert ask(gateway, Shape(path="/", headers=(), required=()), login(editor)).status == 400


@pytest.mark.parametrize("path", ["/other", "/nginx/", "/Nginx", "/caddy/x", "/envoy", "//nginx", "/traefik/../nginx"])
def test_a_path_that_names_no_shape_is_never_a_yes(path: str, gateway: Patgate, editor: Token) -> None:
    response = ask(gateway, Shape(path=path, headers=(), required=()), [*ORIGINAL, *login(editor)])
    assert 400 <= response.status < 500


@pytest.mark.parametrize(
    ("shape", "foreign"),
    [("nginx", FORWARDED), ("traefik", ORIGINAL), ("caddy", ORIGINAL), ("envoy", ORIGINAL), ("envoy", FORWARDED)],
)
def test_a_named_shape_does_not_read_the_other_family(
    shape: str, foreign: tuple[tuple[str, str], ...], gateway: Patgate, viewer: Token
) -> None:
    """This ingress's headers say PUT, which a viewer may not; the other family, which a client can send, says GET."""
    own = [(key, "PUT" if key.endswith("Method") else value) for key, value in SHAPES[shape].headers]
    response = ask(gateway, SHAPES[shape], [*own, *foreign, *login(viewer)], method="PUT" if shape == "envoy" else None)
    assert response.status == 403
    assert response.json()["reason"] == "role_denies"


def test_envoys_own_method_and_path_are_what_is_decided(gateway: Patgate, viewer: Token) -> None:
    assert ask(gateway, SHAPES["envoy"], login(viewer), method="GET").status == 200
    assert ask(gateway, SHAPES["envoy"], login(viewer), method="DELETE").status == 403
    denied = Shape(path="/envoy/billing/x", headers=(), required=())
    assert ask(gateway, denied, login(viewer)).status == 403


def test_a_public_route_is_allowed_with_every_identity_header_empty(gateway: Patgate) -> None:
    headers = [(key, "/healthz" if key == "X-Original-URI" else value) for key, value in ORIGINAL]
    response = ask(gateway, SHAPES["nginx"], headers)
    assert response.status == 200
    for field in IDENTITY:
        assert response.get(f"X-Auth-{field}") == "", field


def test_the_proxy_listener_does_not_believe_a_clients_forwarded_headers(gateway: Patgate, viewer: Token) -> None:
    """They have no effect on the proxy listener, which decides by the request line of the request that it forwards."""
    with Connection(gateway.port) as connection:
        headers = viewer.bearer | dict(ORIGINAL) | dict(FORWARDED)
        assert connection.request("PUT", TARGET, headers=headers).status == 403
