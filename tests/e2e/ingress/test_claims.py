"""Every file of config/ingress protects the application as patgate would: from claims, nominations and trailers.

docs/threat-model.md §2, through each ingress of ``tests.support.ingress.INGRESSES``. A claim is a header that only
patgate or the ingress may set; a nomination is a field name in ``Connection``. In forward auth the ingress forwards the
client's headers, so its file must do what patgate does for requests that it forwards itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from socket import create_connection

import pytest

from tests.e2e.ingress.matrix import Row
from tests.support.gateway import Patgate, Token
from tests.support.ingress import INGRESSES, Ingress, asked_port
from tests.support.plugin import EDITOR
from tests.support.process import HANGS_SECONDS, LOOPBACK, wait_until
from tests.support.rawhttp import Connection, Response
from tests.support.recorder import Recorded, Recorder
from tests.support.remote import Remote, running
from tests.support.websocket import TEXT, Client
from tests.threats.cases import CLAIMS, FAMILIES, aliases

IDENTITY = ("User", "Email", "Org", "Role", "Scopes", "Token", "Token-Name", "Kind")

OURS = (*(f"X-Auth-{field}" for field in IDENTITY), "X-Request-Id")
"""The headers that patgate returns to the ingress and that the application must receive."""

INGRESSES_OWN = ("Host", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Real-Ip")
"""The headers that the ingress sets itself, if it sets them."""

NOMINATIONS = {
    "alone": "Connection: {name}\r\n",
    "behind close": "Connection: close, {name}\r\n",
    "behind keep-alive": "Connection: keep-alive, {name}\r\n",
    "before close": "Connection: {name},close\r\n",
    "in a second line": "Connection: keep-alive\r\nConnection: {name}\r\n",
    "among empty ones": "Connection: ,, ,\t{name} ,\r\n",
    "with an upgrade that is none": "Connection: Upgrade, {name}\r\n",
    "with an upgrade to h2c": "Connection: Upgrade, {name}\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "in Proxy-Connection": "Proxy-Connection: keep-alive, {name}\r\n",
    "in Keep-Alive": "Connection: keep-alive\r\nKeep-Alive: {name}\r\n",
    "beside trailers": "Connection: TE, Trailer, {name}\r\nTE: trailers\r\nTrailer: {name}\r\n",
}

#: One target for each kind of route that reaches the application, and whether it needs a token.
OPEN = {"/v1/things/1": True, "/healthz": False, "/ui/x": False}

ORDINARY = (
    *("Accept", "Accept-Encoding", "Accept-Language", "Cookie", "User-Agent", "Referer", "Origin", "Content-Type"),
    *(
        "If-None-Match",
        "If-Match",
        "If-Modified-Since",
        "Range",
        "Cache-Control",
        "Pragma",
        "Prefer",
        "Dnt",
        "Priority",
    ),
    *("Sec-Fetch-Site", "Sec-Ch-Ua", "Traceparent", "Tracestate", "Baggage", "X-B3-Traceid", "X-Correlation-Id"),
    *("Request-Id", "X-Requested-With", "X-Csrf-Token", "X-Xsrf-Token", "Idempotency-Key", "X-Api-Version", "Depth"),
    *("Overwrite", "Lock-Token", "Timeout", "Last-Event-Id", "Mcp-Session-Id", "Mcp-Protocol-Version", "Git-Protocol"),
    *("X-Amz-Date", "X-Amz-Content-Sha256", "X-Goog-Api-Client", "X-Ms-Version", "X-Ms-Client-Request-Id"),
    *("X-Client-Version", "X-Client-Data", "X-Azure-Fdid", "X-Hub-Signature-256", "X-Github-Event", "X-Gitlab-Event"),
    *("X-Server-Id", "X-Remoteness", "Proxying", "Https-Wanted"),
)
"""Headers of real clients, and a few that only look like claims."""

BATCH = 40
"""Fields in one request: with the others that are sent, fewer than the hundred that patgate accepts by default."""


def ask(
    ingress: Ingress,
    token: Token | None,
    extra: str = "",
    *,
    method: str = "GET",
    target: str = "/v1/things/1",
    host: str = "gateway",
    version: str = "1.1",
) -> Response:
    """Send one request on a new connection; ``extra`` contains field lines."""
    login = f"Authorization: Bearer {token.value}\r\n" if token else ""
    head = f"{method} {target} HTTP/{version}\r\nHost: {host}\r\n{login}X-Ordinary: kept\r\n{extra}\r\n"
    with Connection(ingress.port) as connection:
        return connection.exchange(head.encode("latin-1"))


def identity(seen: Recorded) -> dict[str, list[bytes]]:
    """The received headers for the caller's identity, address and host, under any spelling."""
    told = {name: seen.all(name) for name in (*OURS, *INGRESSES_OWN)}
    assert len(told["X-Request-Id"]) == 1
    return told | {"X-Request-Id": []}


def batches(names: Sequence[str], size: int = BATCH) -> Iterator[Sequence[str]]:
    """The names in batches that every server on the path accepts in one request."""
    for start in range(0, len(names), size):
        yield names[start : start + size]


@pytest.mark.parametrize("target", OPEN)
@pytest.mark.parametrize("kind", CLAIMS)
@pytest.mark.row(Row.CLAIMS)
def test_no_claim_of_a_client_reaches_the_application(
    kind: str, target: str, ingress: Ingress, behind: Recorder, editor: Token
) -> None:
    token = editor if OPEN[target] else None
    arrived = []
    claims = [*CLAIMS[kind], *(FAMILIES.get(kind, ()) if ingress.patterns else ())]
    for names in batches([alias for name in claims for alias in aliases(name)]):
        behind.clear()
        marks = {name: f"mallory-{number}-" for number, name in enumerate(names)}
        extra = "".join(f"{name}: {mark}\r\n" for name, mark in marks.items())
        assert ask(ingress, token, extra, target=target).status == 200
        assert behind.last().all("X-Ordinary") == [b"kept"]
        arrived += [name for name, mark in marks.items() if any(mark.encode() in data for data in behind.received)]
    assert arrived == []


@pytest.mark.row(Row.CLAIMS)
def test_every_other_header_reaches_the_application(ingress: Ingress, behind: Recorder, editor: Token) -> None:
    """The patterns of a file remove only claims; headers that real clients send pass."""
    ordinary = {name: f"{number}-passes" for number, name in enumerate(ORDINARY)}
    assert ask(ingress, editor, "".join(f"{name}: {value}\r\n" for name, value in ordinary.items())).status == 200
    assert {name: behind.last().all(name) for name in ordinary} == {
        name: [value.encode()] for name, value in ordinary.items()
    }


@pytest.mark.row(Row.CLAIMS)
def test_a_claim_that_is_sent_twice_does_not_reach_the_application(
    ingress: Ingress, behind: Recorder, editor: Token
) -> None:
    for names in batches([name for group in CLAIMS.values() for name in group], BATCH // 2):
        extra = "".join(f"{name}: mallory\r\nX-Other: kept\r\n{name.lower()}: mallory\r\n" for name in names)
        assert ask(ingress, editor, extra).status == 200
        assert ask(ingress, None, extra, target="/healthz").status == 200
    assert not any(b"mallory" in data for data in behind.received)


@pytest.mark.parametrize("form", NOMINATIONS)
@pytest.mark.row(Row.NOMINATED)
def test_a_nomination_takes_nothing_from_the_application(
    form: str, ingress: Ingress, behind: Recorder, editor: Token
) -> None:
    """RFC 9110 section 7.6.1: ``Connection`` names fields to drop at the next hop, not fields that the hop adds."""
    assert ask(ingress, editor).status == 200
    expected = identity(behind.last())
    assert expected["X-Auth-Email"] == [EDITOR.encode()]
    assert expected["X-Auth-Role"] == [b"editor"]
    lost = {}
    for name in (*OURS, *INGRESSES_OWN[1:]):
        for spelling in (name, name.lower(), name.upper(), name.replace("-", "_")):
            nomination = NOMINATIONS[form].format(name=spelling)
            behind.clear()
            if ask(ingress, editor, nomination).status == 400:  # Envoy, for a name that describes the request
                assert behind.requests == []
                continue
            told = identity(behind.last())
            if told != expected:
                lost[nomination] = {key for key in told if told[key] != expected[key]}
            named = [value.lower() for value in behind.last().all("Connection")]
            assert set(named) <= {b"close", b"keep-alive"}, nomination
    assert lost == {}


@pytest.mark.parametrize(
    "name", ["Host", "Authorization", "X-Api-Key", "Content-Length", "Transfer-Encoding", "Cookie"]
)
@pytest.mark.row(Row.NOMINATED)
def test_a_nomination_of_what_the_request_is_made_of_changes_nothing_or_is_refused(
    name: str, ingress: Ingress, behind: Recorder, editor: Token
) -> None:
    assert ask(ingress, editor).status == 200
    expected = identity(behind.last())
    behind.clear()
    response = ask(ingress, editor, f"Cookie: a=b\r\nConnection: close, {name}\r\n")
    if response.status == 200:
        assert identity(behind.last()) == expected
        assert behind.last().all("Cookie") in ([b"a=b"], [] if name == "Cookie" else [b"a=b"])
    else:
        assert response.status in (400, 401)
        assert behind.requests == []


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
@pytest.mark.parametrize("target", ["/v1/things", "/public/x"])
@pytest.mark.row(Row.TRAILERS)
def test_no_trailer_reaches_the_application(
    target: str, declared: bool, ingress: Ingress, behind: Recorder, editor: Token
) -> None:
    trailers = [
        *OURS,
        *(name.replace("-", "_") for name in OURS),
        *(name.replace("-", ".") for name in OURS),
        "X-Other",
    ]
    announced = f"Trailer: {', '.join(trailers)}\r\n" if declared else ""
    login = f"Authorization: Bearer {editor.value}\r\n" if target.startswith("/v1") else ""
    head = (
        f"POST {target} HTTP/1.1\r\nHost: gateway\r\n{login}{announced}"
        "TE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    body = "4\r\nbody\r\n0\r\n" + "".join(f"{name}: mallory\r\n" for name in trailers) + "\r\n"
    with Connection(ingress.port) as connection:
        assert connection.exchange((head + body).encode()).status == 200
    seen = behind.last()
    assert (b"mallory" in seen.body) == ingress.passes_trailers
    assert b"mallory" not in seen.head
    if not ingress.passes_trailers:
        assert seen.body in (b"body", b"4\r\nbody\r\n0\r\n\r\n"), "a trailer section"
    assert seen.all("TE") == []
    if login:
        assert seen.only("X-Auth-Email") == EDITOR


@pytest.mark.parametrize(
    ("written", "host", "allowed"),
    [
        ("open.example", "open.example", True),
        ("closed.example", "closed.example", False),
        ("open.example", "closed.example", None),
        ("closed.example", "open.example", None),
    ],
)
@pytest.mark.row(Row.ABSOLUTE)
def test_the_host_that_is_judged_is_the_one_that_the_ingress_acts_on(
    written: str, host: str, allowed: bool | None, ingress: Ingress, behind: Recorder
) -> None:
    """If the target and ``Host`` name different hosts, an ingress uses the target's (RFC 9112 section 3.2.2)."""
    response = ask(ingress, None, target=f"http://{written}/hosts/x", host=host)
    if response.status == 200:
        assert written == "open.example" and allowed is not False
        seen = behind.last()
        assert seen.target == b"/hosts/x"
        assert seen.only("Host") == written
        assert seen.only("X-Forwarded-Host") == written
    else:
        assert not allowed
        assert response.status in (400, 403)
        assert behind.requests == []


@pytest.mark.parametrize("nomination", ["", "Connection: X-Auth-Role\r\n", "Connection: keep-alive, x-auth-email\r\n"])
@pytest.mark.row(Row.HOSTS)
def test_a_client_of_http_1_0_is_judged_and_described_like_any_other(
    nomination: str, ingress: Ingress, behind: Recorder, editor: Token
) -> None:
    assert ask(ingress, editor).status == 200
    expected = identity(behind.last())
    behind.clear()
    assert ask(ingress, editor, nomination, version="1.0").status == 200
    assert identity(behind.last()) == expected
    behind.clear()
    assert ask(ingress, None, nomination, version="1.0").status == 401
    assert behind.requests == []


@pytest.mark.row(Row.HOSTS)
def test_a_request_without_a_host_is_refused(ingress: Ingress, behind: Recorder, editor: Token) -> None:
    """Routes may depend on the host, so a request without one gets no decision."""
    head = f"GET /v1/things/1 HTTP/1.0\r\nAuthorization: Bearer {editor.value}\r\n\r\n".encode()
    with Connection(ingress.port) as connection:
        assert connection.exchange(head).status in (400, 404)
    assert behind.requests == []


@pytest.mark.row(Row.CLAIMS)
def test_the_address_that_is_told_is_the_clients_own(ingress: Ingress, behind: Recorder, editor: Token) -> None:
    claims = "".join(f"{name}: 203.0.113.9\r\n" for name in CLAIMS["client"])
    assert ask(ingress, editor, claims).status == 200
    seen = behind.last()
    assert b"203.0.113.9" not in seen.head
    assert seen.only("X-Forwarded-For") == "127.0.0.1"
    assert seen.only("X-Forwarded-Proto") == "http"
    assert seen.only("X-Forwarded-Host") == "gateway"


http2 = running("http2_client")


def http2_head(method: str = "GET", target: str = "/v1/things/1", token: Token | None = None) -> list[list[str]]:
    head = [[":method", method], [":scheme", "http"], [":authority", "gateway"], [":path", target]]
    return [*head, *([["authorization", f"Bearer {token.value}"]] if token else []), ["x-ordinary", "kept"]]


@pytest.mark.parametrize("kind", CLAIMS)
@pytest.mark.row(Row.HTTP2)
def test_no_claim_in_http_2_reaches_the_application(
    kind: str, ingress: Ingress, behind: Recorder, editor: Token, http2: Remote
) -> None:
    for names in batches([alias.lower() for name in CLAIMS[kind] for alias in (name, name.replace("-", "_"))]):
        head = [*http2_head(token=editor), *([name, "mallory"] for name in names)]
        assert http2.ask("request", port=ingress.http2_port, headers=head) == 200
        assert behind.last().all("X-Ordinary") == [b"kept"]
    assert not any(b"mallory" in data for data in behind.received)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.row(Row.HTTP2)
def test_a_nomination_in_http_2_takes_nothing_from_the_application(
    name: str, ingress: Ingress, behind: Recorder, editor: Token, http2: Remote
) -> None:
    """RFC 9113 section 8.2.2 makes such a request malformed; some servers refuse it, others ignore the field."""
    assert http2.ask("request", port=ingress.http2_port, headers=http2_head(token=editor)) == 200
    expected = identity(behind.last())
    assert expected["X-Auth-Email"] == [EDITOR.encode()]
    behind.clear()
    head = [*http2_head(token=editor), ["connection", name.lower()]]
    if http2.ask("request", port=ingress.http2_port, headers=head) == 200:
        assert identity(behind.last()) == expected
    else:
        assert behind.requests == []


@pytest.mark.row(Row.HTTP2)
def test_no_trailer_of_http_2_reaches_the_application(
    ingress: Ingress, behind: Recorder, editor: Token, http2: Remote
) -> None:
    head = [*http2_head("POST", "/v1/things", editor), ["te", "trailers"]]
    trailers = [[name.lower(), "mallory"] for name in (*OURS, "X-Other")]
    # nginx closes such a connection, which is also fine.
    if http2.ask("request", port=ingress.http2_port, headers=head, body="body", trailers=trailers) == 200:
        assert behind.last().only("X-Auth-Email") == EDITOR
    assert any(b"mallory" in data for data in behind.received) == ingress.passes_trailers


@pytest.mark.parametrize("authority", ["open.example", "closed.example"])
@pytest.mark.row(Row.HTTP2)
def test_another_host_beside_the_authority_of_http_2_does_not_change_what_is_judged(
    authority: str, ingress: Ingress, behind: Recorder, http2: Remote
) -> None:
    other = {"open.example": "closed.example", "closed.example": "open.example"}[authority]
    head = [[":method", "GET"], [":scheme", "http"], [":authority", authority], [":path", "/hosts/x"], ["host", other]]
    if http2.ask("request", port=ingress.http2_port, headers=head) == 200:
        assert authority == "open.example"
        assert behind.last().only("Host") == authority
        assert behind.last().only("X-Forwarded-Host") == authority
    else:
        assert behind.requests == []


sockets = running("websocket_server")


@pytest.fixture(scope="module", params=INGRESSES)
def socket_ingress(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, asked: Patgate, sockets: Remote
) -> Iterator[Ingress]:
    """Each ingress in front of a WebSocket server."""
    port = sockets.ask("serve", subprotocols=[])
    directory = tmp_path_factory.mktemp(request.param)
    ports = {"application": port, "forward_auth": asked_port(request.param, asked)}
    with INGRESSES[request.param](directory, **ports) as running:
        yield running


@pytest.mark.parametrize(
    "connection",
    [
        *("Upgrade", "upgrade", "keep-alive, Upgrade", "Upgrade, keep-alive", "keep-alive,Upgrade,X-Auth-User"),
        *("X-Auth-Role, Upgrade", "keep-alive, Upgrade, X-Auth-User, X-Auth-Email, X-Auth-Role, X-Auth-Scopes"),
    ],
)
@pytest.mark.row(Row.WEBSOCKETS)
def test_a_websocket_passes_with_our_identity_whatever_else_is_nominated(
    connection: str, socket_ingress: Ingress, sockets: Remote, editor: Token
) -> None:
    before = len(sockets.told("opened"))
    login = f"Authorization: Bearer {editor.value}\r\nX-Auth-Role: admin\r\n".encode()
    with create_connection((LOOPBACK, socket_ingress.port), timeout=HANGS_SECONDS) as sock:
        client = Client(sock)
        assert client.open(b"/v1/channels/7/messages", login, connection=connection.encode()) == 101
        client.send(TEXT, b"there and back")
        assert client.receive() == (TEXT, b"there and back")
    wait_until(lambda: len(sockets.told("opened")) > before, "the server's own word", process=sockets.process)
    headers = sockets.told("opened")[before]["headers"]
    assert headers["x-auth-email"] == EDITOR
    assert headers["x-auth-role"] == "editor"
    assert headers["x-auth-user"]
    assert headers["x-auth-token"] == editor.prefix


@pytest.mark.row(Row.WEBSOCKETS)
def test_a_websocket_without_a_token_is_refused(socket_ingress: Ingress, sockets: Remote) -> None:
    before = len(sockets.told("opened"))
    with create_connection((LOOPBACK, socket_ingress.port), timeout=HANGS_SECONDS) as sock:
        client = Client(sock)
        assert client.open(b"/v1/channels/7/messages", connection=b"keep-alive, Upgrade, X-Auth-User") == 401
    assert len(sockets.told("opened")) == before
