"""The head that the backend gets: field lines, identity and forwarding fields, and never the credential."""

from __future__ import annotations

import base64
import time

import pytest

from proxy.core.identity import PRESETS, STRIPPED
from proxy.core.model import Access
from tests.unit.gateway.kit import Gateway, answering, field_lines, get, make_route, response, serving

IDENTITY = [name for _, name in PRESETS["patgate"].headers]


def mirror(head: bytes) -> bytes:
    """A response whose body is the request head."""
    return response(head)


async def seen(gateway: Gateway, data: bytes) -> bytes:
    """The head that the backend got."""
    client = await gateway.client()
    answer = await client.ask(data)
    assert answer.status == 200, answer
    return answer.body


async def test_order_case_repeats_and_values_are_kept() -> None:
    async with serving(answering(mirror)) as (gateway, _):
        data = (
            b"GET /open/a?b=c HTTP/1.1\r\nACCEPT: */*\r\nhOsT: gateway:80\r\nx-A:  one \r\nCookie: a\r\nX-a:\r\n"
            b"Cookie: b\r\nX-Odd~: \xe4\tz\r\n\r\n"
        )
        head = await seen(gateway, data)
        lines = head.split(b"\r\n")
        assert lines[:8] == [
            b"GET /open/a?b=c HTTP/1.1",
            b"ACCEPT: */*",
            b"Host: gateway:80",
            b"x-A:  one ",
            b"Cookie: a",
            b"X-a:",
            b"Cookie: b",
            b"X-Odd~: \xe4\tz",
        ]
        assert [line.partition(b":")[0] for line in lines[8:-2]] == [
            b"Via", b"X-Request-Id", b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host",
        ]  # fmt: skip


@pytest.mark.parametrize(
    "target", ["/open/%7Ea/%61?%2e%2e/../x", "/open/a%20b", "/open/caf%C3%A9", "/open/?", "/open/a?a?b"]
)
async def test_a_target_is_forwarded_as_received(target: str) -> None:
    async with serving(answering(mirror)) as (gateway, _):
        head = await seen(gateway, get(target))
        assert head.split(b"\r\n")[0] == f"GET {target} HTTP/1.1".encode()


async def test_an_absolute_target_is_forwarded_in_origin_form() -> None:
    async with serving(answering(mirror)) as (gateway, _):
        head = await seen(gateway, get("http://GateWay/open/a?b"))
        assert head.split(b"\r\n")[0] == b"GET /open/a?b HTTP/1.1"
        assert field_lines(head, "host") == [b"gateway"]


async def test_an_http_1_0_request_is_forwarded_as_http_1_1() -> None:
    async with serving(answering(mirror)) as (gateway, _):
        assert (await seen(gateway, get("/open/a", version="1.0"))).startswith(b"GET /open/a HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "connection",
    ["x-private", "X-Private , keep-alive", "close,\tx-PRIVATE", ", x-private,,"],
)
async def test_fields_that_connection_nominates_are_not_forwarded(connection: str) -> None:
    async with serving(answering(mirror)) as (gateway, _):
        data = get("/open/a", "X-Private: 1", f"Connection: {connection}", "x-private: 2", "X-Private-Not: 3")
        head = await seen(gateway, data)
        assert field_lines(head, "x-private") == []
        assert field_lines(head, "connection") == []
        assert field_lines(head, "x-private-not") == [b"3"]


async def test_connection_fields_may_be_repeated() -> None:
    async with serving(answering(mirror)) as (gateway, _):
        head = await seen(gateway, get("/open/a", "Connection: x-a", "X-A: 1", "CONNECTION: x-b", "X-B: 2", "X-C: 3"))
        assert [field_lines(head, f"x-{letter}") for letter in "abc"] == [[], [], [b"3"]]


@pytest.mark.parametrize("name", ["host", "authorization", "content-length", "transfer-encoding", "cookie", "Host"])
async def test_fields_with_a_meaning_for_the_gateway_cannot_be_nominated(name: str) -> None:
    async with serving(answering(mirror)) as (gateway, backend):
        client = await gateway.client()
        answer = await client.ask(get("/open/a", f"Connection: keep-alive, {name}"))
        assert answer.status == 400
        assert backend.connections == []


@pytest.mark.parametrize("value", ["a b", "@", "x;y", 'x="1"'])
async def test_a_connection_field_that_is_not_a_list_of_names_is_refused(value: str) -> None:
    async with serving(answering(mirror)) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(get("/open/a", f"Connection: {value}"))).status == 400


async def test_hop_by_hop_fields_are_not_forwarded() -> None:
    names = (
        "Keep-Alive",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Upgrade",
        "HTTP2-Settings",
    )
    async with serving(answering(mirror)) as (gateway, _):
        head = await seen(gateway, get("/open/a", *(f"{name}: x" for name in names)))
        assert all(field_lines(head, name) == [] for name in names)


def aliases(name: str) -> list[str]:
    return [name, name.lower(), name.upper(), name.replace("-", "_"), name.replace("-", "."), name.replace("-", "~", 1)]


@pytest.mark.parametrize("target", ["/open/a", "/ui/a"])
async def test_no_identity_that_a_client_sends_reaches_the_backend(target: str) -> None:
    async with serving(answering(mirror), max_headers=2000, max_head=200_000) as (gateway, _):
        names = [name.decode().title() for name in STRIPPED]
        lines = [f"{alias}: forged" for name in names for alias in aliases(name)]
        head = await seen(gateway, get(target, *lines))
        assert b"forged" not in head


async def test_an_authenticated_route_sends_every_identity_field_once_with_patgates_value() -> None:
    async with serving(answering(mirror), max_headers=200) as (gateway, _):
        minted = gateway.admit(
            user="usr7", role="editor", scopes=["things:read", "channels:*"], token_name="my «laptop»\r\nX: y"
        )
        lines = [f"{alias}: forged" for name in IDENTITY for alias in aliases(name)]
        data = get(
            "/v1/things/7", *lines, f"Authorization: Bearer {minted.token}", f"Connection: {', '.join(IDENTITY)}"
        )
        head = await seen(gateway, data)
        values = {name: field_lines(head, name) for name in IDENTITY}
        assert values == {
            "X-Auth-User": [b"usr7"],
            "X-Auth-Email": [b"usr7@example.com"],
            "X-Auth-Org": [b""],
            "X-Auth-Role": [b"editor"],
            "X-Auth-Scopes": [b"channels:* things:read"],
            "X-Auth-Token": [minted.prefix.encode()],
            "X-Auth-Token-Name": [b"my%20%C2%ABlaptop%C2%BB%0D%0AX:%20y"],
            "X-Auth-Kind": [b"pat"],
        }
        assert minted.token.encode() not in head
        assert field_lines(head, "authorization") == []


@pytest.mark.parametrize(
    "form", ["Authorization: Bearer {}", "Authorization: Basic {b64}", "X-API-Key: {}", "x-api-key:{}  "]
)
@pytest.mark.parametrize("target", ["/v1/things", "/open/a", "/ui/a", "/report/a"])
async def test_a_patgate_credential_is_never_forwarded(form: str, target: str) -> None:
    async with serving(answering(mirror)) as (gateway, _):
        token = gateway.admit().token
        line = form.format(token, b64=base64.b64encode(f"x:{token}".encode()).decode())
        head = await seen(gateway, get(target, line))
        assert field_lines(head, "authorization") == field_lines(head, "x-api-key") == []
        assert token.encode() not in head


async def test_the_backends_own_login_passes_on_routes_that_leave_it_to_the_backend() -> None:
    async with serving(answering(mirror)) as (gateway, _):
        head = await seen(gateway, get("/ui/a", "Authorization: Basic dXNlcjpwYXNz", "X-API-Key: theirs"))
        assert field_lines(head, "authorization") == [b"Basic dXNlcjpwYXNz"]
        assert field_lines(head, "x-api-key") == [b"theirs"]
        assert not any(field_lines(head, name) for name in IDENTITY)


async def test_a_report_only_route_sends_a_known_identity_and_else_empty_fields() -> None:
    async with serving(answering(mirror)) as (gateway, _):
        minted = gateway.admit(permissions=())
        head = await seen(gateway, get("/report/a", f"Authorization: Bearer {minted.token}"))
        assert field_lines(head, "x-auth-user") == [b"usr1"]
        head = await seen(gateway, get("/report/a", "X-Auth-User: forged"))
        assert {name: field_lines(head, name) for name in IDENTITY} == {name: [b""] for name in IDENTITY}


async def test_a_report_only_route_sends_empty_identity_fields_for_an_expired_token() -> None:
    async with serving(answering(mirror)) as (gateway, _):
        expired = gateway.admit(expires_at=time.time() - 1)
        for form in ("Authorization: Bearer {}", "Authorization: Bearer {}", "X-API-Key: {}", "X-API-Key: {}"):
            head = await seen(gateway, get("/report/a", form.format(expired.token), "X-Auth-User: forged"))
            assert {name: field_lines(head, name) for name in IDENTITY} == {name: [b""] for name in IDENTITY}
            assert expired.token.encode() not in head
        assert gateway.authenticator.hits == 2


@pytest.mark.parametrize("target", ["/open/a", "/ui/a", "/report/a"])
@pytest.mark.parametrize(
    "form",
    [
        "Authorization: Bearer 0{}",
        "Authorization: Bearer {}0",
        "Authorization: Bearer x{}x",
        "Authorization: Bearer _{}_",
        "Authorization: Token token={}",
        "X-API-Key: 0{}",
    ],
)
async def test_a_patgate_token_reaches_no_backend_whatever_surrounds_it(target: str, form: str) -> None:
    async with serving(answering(mirror)) as (gateway, _):
        token = gateway.admit().token
        head = await seen(gateway, get(target, form.format(token)))
        assert token.encode() not in head
        assert field_lines(head, "authorization") == field_lines(head, "x-api-key") == []


async def test_forwarding_fields_of_an_untrusted_peer_are_dropped() -> None:
    async with serving(answering(mirror)) as (gateway, _):
        claims = (
            "X-Forwarded-For: 9.9.9.9",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: evil",
            "Forwarded: for=9.9.9.9",
            "X-Real-IP: 9.9.9.9",
        )
        head = await seen(gateway, get("/open/a", *claims))
        assert field_lines(head, "x-forwarded-for") == [b"127.0.0.1"]
        assert field_lines(head, "x-forwarded-proto") == [b"http"]
        assert field_lines(head, "x-forwarded-host") == [b"gateway"]
        assert b"9.9.9.9" not in head


@pytest.mark.parametrize("network", ["127.0.0.0/8", "127.0.0.1/32"])
async def test_the_chain_of_a_trusted_peer_is_continued(network: str) -> None:
    async with serving(answering(mirror), trusted=[network]) as (gateway, _):
        claims = ("X-Forwarded-For: 1.1.1.1, 2.2.2.2", "x-forwarded-for: 3.3.3.3", "X-Forwarded-Proto: https")
        head = await seen(gateway, get("/open/a", *claims))
        assert field_lines(head, "x-forwarded-for") == [b"1.1.1.1, 2.2.2.2, 3.3.3.3, 127.0.0.1"]
        assert field_lines(head, "x-forwarded-proto") == [b"https"]


async def test_an_alias_of_a_forwarding_field_is_never_believed() -> None:
    async with serving(answering(mirror), trusted=["127.0.0.1/32"]) as (gateway, _):
        head = await seen(gateway, get("/open/a", "X_Forwarded_For: 9.9.9.9", "X-Forwarded.Proto: https"))
        assert field_lines(head, "x-forwarded-for") == [b"127.0.0.1"]
        assert field_lines(head, "x-forwarded-proto") == [b"http"]


async def test_the_forwarded_host_of_a_trusted_peer_is_believed() -> None:
    async with serving(answering(mirror), trusted=["127.0.0.1/32"]) as (gateway, _):
        head = await seen(gateway, get("/open/a", "X-Forwarded-Host: public.example"))
        assert field_lines(head, "x-forwarded-host") == [b"public.example"]
        for hosts in (("a, b",), ("a", "b"), ("a/b",), ("",), ("a:99999",), ("[:::::::]",), ("127.1",)):
            head = await seen(gateway, get("/open/a", *(f"X-Forwarded-Host: {host}" for host in hosts)))
            assert field_lines(head, "x-forwarded-host") == [b"gateway"]


async def test_request_ids_come_from_patgate_and_never_repeat() -> None:
    async with serving(answering(mirror)) as (gateway, _):
        ids = set()
        for _ in range(5):
            (one,) = field_lines(await seen(gateway, get("/open/a", "X-Request-Id: mine")), "x-request-id")
            ids.add(one)
        assert len(ids) == 5
        assert b"mine" not in ids


async def test_the_upstreams_own_host_replaces_the_clients_where_it_is_not_preserved() -> None:
    async with serving(answering(mirror), preserve_host=False) as (gateway, backend):
        data = b"GET /open/a HTTP/1.1\r\nX-Its-Host: gateway\r\nHost: gateway\r\nX-Copy: Host: gateway\r\n\r\n"
        head = await seen(gateway, data)
        assert field_lines(head, "host") == [f"127.0.0.1:{backend.port}".encode()]
        assert field_lines(head, "x-its-host") == [b"gateway"]
        assert field_lines(head, "x-copy") == [b"Host: gateway"]
        assert field_lines(head, "x-forwarded-host") == [b"gateway"]


async def test_host_decides_the_route() -> None:
    routes = [make_route("/a", Access.PUBLIC, index=0, host="open.example"), make_route("/a", Access.DENIED, index=1)]
    async with serving(answering(mirror), routes=routes) as (gateway, _):
        client = await gateway.client()
        for host, status in (
            ("open.example", 200),
            ("OPEN.example:8080", 200),
            ("open.example.", 200),
            ("xopen.example", 403),
        ):
            assert (await client.ask(get("/a").replace(b"gateway", host.encode()))).status == status


@pytest.mark.parametrize(
    ("target", "arrives"),
    [
        ("/npm/left-pad?x=/npm", "/left-pad?x=/npm"),
        ("/%6epm/%6eame", "/%6eame"),
        ("/npm/npm/x", "/npm/x"),
        ("/npm/", "/"),
        ("/npm", "/"),
        ("/npm?a", "/?a"),
        ("http://gateway/npm/x", "/x"),
    ],
)
async def test_a_route_can_cut_its_prefix_off_the_path_and_says_so(target: str, arrives: str) -> None:
    routes = [
        make_route(path, Access.PUBLIC, index=index, strip_prefix="/npm")
        for index, path in enumerate(("/npm/**", "/npm"))
    ]
    async with serving(answering(mirror), routes=routes) as (gateway, _):
        head = await seen(gateway, get(target, "X-Forwarded-Prefix: /evil", "X_Forwarded_Prefix: /evil"))
        assert head.split(b"\r\n")[0] == f"GET {arrives} HTTP/1.1".encode()
        assert [line for line in head.split(b"\r\n") if b"refix" in line] == [b"X-Forwarded-Prefix: /npm"]


@pytest.mark.parametrize(
    ("lines", "prefix"),
    [
        (["X-Forwarded-Prefix: /outer"], b"/outer/npm"),
        (["X-Forwarded-Prefix: /outer/"], b"/outer/npm"),
        (["X-Forwarded-Prefix: /a", "X-Forwarded-Prefix: /b"], b"/npm"),
        (["X-Forwarded-Prefix: /a/../b"], b"/npm"),
        (["X-Forwarded-Port: 443"], b"/npm"),
    ],
)
async def test_a_cut_prefix_follows_the_prefix_of_a_trusted_proxy(lines: list[str], prefix: bytes) -> None:
    routes = [make_route("/npm/**", Access.PUBLIC, strip_prefix="/npm")]
    async with serving(answering(mirror), routes=routes, trusted=["127.0.0.1/32"]) as (gateway, _):
        head = await seen(gateway, get("/npm/x", *lines))
        assert [line for line in head.split(b"\r\n") if b"refix" in line] == [b"X-Forwarded-Prefix: " + prefix]


async def test_only_a_route_that_cuts_a_prefix_sends_one() -> None:
    async with serving(answering(mirror)) as (gateway, _):
        head = await seen(gateway, get("/open/npm/x", "X-Forwarded-Prefix: /evil"))
        assert b"prefix" not in head.lower()
        assert head.startswith(b"GET /open/npm/x HTTP/1.1\r\n")
