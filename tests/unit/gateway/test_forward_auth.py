"""The forward-auth entry: the fields that each shape reads, trusted peers, and responses."""

from __future__ import annotations

import time

import pytest

from proxy.core.identity import PRESETS
from proxy.core.model import Access
from proxy.core.request.target import PathAllowance
from tests.unit.gateway.ingress import (
    DESCRIBING,
    FORWARDED,
    ORIGINAL,
    SHAPES,
    TARGET,
    URL,
    ask,
    ask_on,
    changed,
    connected,
    entry,
    login,
    uri,
)
from tests.unit.gateway.kit import get, make_route

IDENTITY = [name for _, name in PRESETS["patgate"].headers]


@pytest.mark.parametrize("shape", SHAPES)
async def test_allowed_is_exactly_200_with_every_identity_header_and_nothing_else(shape: str) -> None:
    async with entry() as gateway:
        minted = gateway.admit(user="usr7", role="editor", scopes=["things:read"], token_name="ci")
        client = await gateway.client()
        for _ in range(2):
            answer = await ask_on(
                client, shape, SHAPES[shape], f"Authorization: Bearer {minted.token}", "X-Auth-User: forged"
            )
            assert (answer.status, answer.body) == (200, b"")
            names = [name.decode() for name, _ in answer.fields]
            assert names == ["Content-Length", "Cache-Control", *IDENTITY, "X-Request-Id"]
            assert answer.head.startswith(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nCache-Control: no-store\r\n")
            values = {name.decode(): value.decode() for name, value in answer.fields}
            assert {name: values[name] for name in IDENTITY} == {
                "X-Auth-User": "usr7",
                "X-Auth-Email": "usr7@example.com",
                "X-Auth-Org": "",
                "X-Auth-Role": "editor",
                "X-Auth-Scopes": "things:read",
                "X-Auth-Token": minted.prefix,
                "X-Auth-Token-Name": "ci",
                "X-Auth-Kind": "pat",
            }


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_public_route_gets_every_identity_header_empty(shape: str) -> None:
    routes = [make_route("/v1/**", Access.PUBLIC)]
    async with entry(routes=routes) as gateway:
        for lines in ((), (login(gateway),), ("Authorization: Basic dXNlcjpwYXNz",)):
            answer = await ask(gateway, shape, SHAPES[shape], *lines)
            assert answer.status == 200
            assert {name: answer.all(name.encode()) for name in IDENTITY} == {name: [b""] for name in IDENTITY}


@pytest.mark.parametrize("shape", SHAPES)
async def test_refusals_are_the_same_as_the_proxys(shape: str) -> None:
    async with entry() as gateway:
        client = await gateway.client()
        answer = await ask_on(client, shape, SHAPES[shape])
        assert (answer.status, answer.reason) == (401, "no_credential")
        assert answer.all(b"www-authenticate")[0] == b'Bearer realm="acme"'
        answer = await ask_on(client, shape, SHAPES[shape], "Authorization: Bearer nonsense")
        assert (answer.status, answer.reason) == (401, "invalid_token")
        answer = await ask_on(client, shape, SHAPES[shape], login(gateway, permissions=("things:list",)))
        assert answer.status == 403
        assert not any(answer.all(name.encode()) for name in IDENTITY)
        assert (await ask_on(client, shape, SHAPES[shape], login(gateway))).status == 200


@pytest.mark.parametrize("shape", SHAPES)
async def test_two_credentials_are_refused(shape: str) -> None:
    async with entry() as gateway:
        token = gateway.admit().token
        for second in (f"Authorization: Bearer {token}", f"X-API-Key: {token}"):
            answer = await ask(gateway, shape, SHAPES[shape], f"Authorization: Bearer {token}", second)
            assert (answer.status, answer.reason) == (400, "credential_ambiguous")


REQUIRED = [(shape, name) for shape, fields in SHAPES.items() for name, _ in fields]


@pytest.mark.parametrize(("shape", "name"), REQUIRED)
async def test_a_call_with_a_missing_or_repeated_field_is_refused(shape: str, name: str) -> None:
    async with entry() as gateway:
        fields = SHAPES[shape]
        value = dict(fields)[name]
        for values in ((), ("",), (value, value), (value, ""), ("", value)):
            answer = await ask(gateway, shape, changed(fields, name, *values), login(gateway))
            assert (answer.status, answer.reason) == (400, "forwarded_invalid"), values


@pytest.mark.parametrize(("shape", "name"), REQUIRED)
async def test_an_alias_of_a_field_is_not_the_field(shape: str, name: str) -> None:
    """CGI and WSGI fold an alias to the same name, so an ingress may fail to overwrite it."""
    async with entry() as gateway:
        fields = SHAPES[shape]
        for alias in {name.replace("-", "_"), name.replace("-", ".", 1)} - {name}:
            aliased = [(alias if key == name else key, value) for key, value in fields]
            assert (await ask(gateway, shape, aliased, login(gateway))).status == 400
            both = [*fields, (alias, "/shut/a")]
            assert (await ask(gateway, shape, both, login(gateway))).status == 200


@pytest.mark.parametrize("shape", DESCRIBING)
@pytest.mark.parametrize("value", ["G ET", "GET,GET", "GET\tX", "{}", "GET/1", "g\xe9t"])
async def test_an_invalid_described_method_is_refused(shape: str, value: str) -> None:
    async with entry() as gateway:
        name = SHAPES[shape][0][0]
        answer = await ask(gateway, shape, changed(SHAPES[shape], name, value), login(gateway))
        assert (answer.status, answer.reason) == (400, "forwarded_invalid")


@pytest.mark.parametrize("shape", DESCRIBING)
@pytest.mark.parametrize(
    "value",
    [
        "v1/things/42",
        "http://app.example.org/v1/things/42",
        "//app.example.org/v1/things/42",
        "*",
        "?a",
        "/v1/things/42#x",
        "/v1/things/42?a#x",
        "/v1/things/42 x",
        "/v1/things/42?a b",
        "/v1/things/\x7f",
        "/v1/things/42, /v1/things/43",
        "/v1/../shut/a",
        "/v1/things/%2e%2e/x",
        "/v1/things/%zz",
        "/v1/things/%252e",
        "/v1/things\\42",
        "/v1/things/a%2Fb",
        "/v1/things/a;b",
        "/v1//things",
        "/v1/things/caf\xe9",
    ],
)
async def test_an_invalid_or_ambiguous_described_target_is_refused(shape: str, value: str) -> None:
    async with entry() as gateway:
        fields = SHAPES[shape]
        if value.startswith("http") and fields == URL:
            return
        name, described = fields[1]
        # Behind the host of a URL, a relative target could be a part of that host.
        given = described.replace(TARGET, value) if value.startswith("/") else value
        answer = await ask(gateway, shape, changed(fields, name, given), login(gateway))
        assert answer.status == 400
        assert answer.reason in ("forwarded_invalid", "target_not_canonical", "request_malformed")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/v1/things/42?a=b&c=%zz|", 200),
        ("/v1/things/42?", 200),
        ("/v1/th%69ngs/42", 200),
        ("/v1/things/caf%C3%A9", 200),
        ("/v1/things", 200),
        ("/v1/things/", 403),
        ("/nowhere", 403),
        ("/shut/a", 403),
        ("/sh%75t/a", 403),
        ("/open/a", 200),
    ],
)
@pytest.mark.parametrize("shape", ["/nginx", "/ingress-nginx", "/nginx-gateway-fabric", "/traefik", "/haproxy"])
async def test_the_described_target_is_routed_like_a_proxied_one(shape: str, target: str, status: int) -> None:
    async with entry() as gateway:
        assert (await uri(gateway, target, login(gateway), shape=shape)).status == status


async def test_a_route_that_allows_an_encoded_slash_allows_it_here_too() -> None:
    routes = [make_route("/v1/{entity}/{id}", Access.TOKEN, allow=int(PathAllowance.ENCODED_SLASH))]
    async with entry(routes=routes) as gateway:
        only = login(gateway, permissions=("things/a/b:read",))
        assert (await uri(gateway, "/v1/things/a%2Fb", only)).status == 200
        assert (await uri(gateway, "/v1/things/a%2Fc", only)).status == 403
        assert (await uri(gateway, "/v1/things/a%2F..", only)).status == 400


@pytest.mark.parametrize("shape", ["/envoy", "/envoy/", "/envoyv1/things/42"])
async def test_envoys_path_follows_its_prefix(shape: str) -> None:
    async with entry() as gateway:
        answer = await ask(gateway, shape, (), login(gateway))
        assert answer.status == (403 if shape == "/envoy/" else 400)


@pytest.mark.parametrize(
    ("target", "status"), [("/v1/things/42?x", 200), ("/v1/%2e%2e/x", 400), ("//x", 400), ("/shut/a", 403)]
)
async def test_envoys_path_is_judged_without_the_prefix(target: str, status: int) -> None:
    async with entry() as gateway:
        assert (await ask(gateway, "/envoy" + target, (), login(gateway))).status == status


@pytest.mark.parametrize(
    "path", ["/nginx/", "/Nginx", "/nginx/a", "/traefikx", "/ngin%78", "/healthz", "/v1/things/42"]
)
async def test_a_path_that_names_no_shape_is_refused(path: str) -> None:
    async with entry() as gateway:
        answer = await ask(gateway, path, (*ORIGINAL, *FORWARDED), login(gateway))
        assert (answer.status, answer.reason) == (400, "forwarded_invalid")


async def test_a_shape_reads_its_own_fields_and_no_others() -> None:
    async with entry() as gateway:
        lies = {
            "/nginx": (("X-Forwarded-Method", "PUT"), ("X-Forwarded-Uri", "/shut/a"), ("X-Forwarded-Host", "x y")),
            "/traefik": (("X-Original-Method", "PUT"), ("X-Original-URI", "/shut/a"), ("X-Original-URI", "/")),
            "/envoy" + TARGET: (*changed(ORIGINAL, "X-Original-URI", "/shut/a"), *FORWARDED),
        }
        for shape, fields in lies.items():
            assert (await ask(gateway, shape, (*SHAPES[shape], *fields), login(gateway))).status == 200
            # The fields of another shape do not replace missing ones either.
            if shape != "/envoy" + TARGET:
                others = FORWARDED if shape == "/nginx" else ORIGINAL
                assert (await ask(gateway, shape, others, login(gateway))).status == 400


async def test_without_a_named_shape_both_families_and_none_are_refused() -> None:
    async with entry() as gateway:
        for fields in (
            (*ORIGINAL, *FORWARDED),
            (*ORIGINAL, FORWARDED[0]),
            (ORIGINAL[1], *FORWARDED),
            (),
            (FORWARDED[2],),
            (ORIGINAL[0], FORWARDED[1], FORWARDED[2]),
        ):
            assert (await ask(gateway, "/", fields, login(gateway))).status == 400


@pytest.mark.parametrize(
    "host",
    [
        "a/b", "a@b", "a b", "a,b", "a..b", "%61", "a" * 64, "a." * 128, ":80", "[::1", "h:99999", "[:::::::]", "127.1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", ["/traefik", "/caddy", "/ forwarded"])
async def test_an_invalid_described_host_is_refused(shape: str, host: str) -> None:
    async with entry() as gateway:
        answer = await ask(gateway, shape, changed(FORWARDED, "X-Forwarded-Host", host), login(gateway))
        assert (answer.status, answer.reason) == (400, "forwarded_invalid")


async def test_the_described_host_decides_the_route_where_the_shape_describes_one() -> None:
    routes = [
        make_route("/**", Access.PUBLIC, index=0, host="open.example"),
        make_route("/**", Access.DENIED, index=1),
    ]
    async with entry(routes=routes) as gateway:
        for host, status in (
            ("open.example", 200),
            ("OPEN.example:443", 200),
            ("open.example.", 200),
            ("x.example", 403),
        ):
            fields = changed(FORWARDED, "X-Forwarded-Host", host)
            assert (await ask(gateway, "/caddy", fields)).status == status
            client = await gateway.client()
            # For the other shapes, the host is that of the call itself.
            for shape, own in (("/nginx", ORIGINAL), ("/envoy" + TARGET, ())):
                data = get(shape, *(f"{name}: {value}" for name, value in own), "X-Forwarded-Host: open.example")
                assert (await client.ask(data.replace(b"Host: gateway", b"Host: " + host.encode()))).status == status


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("PUT", 403), ("DELETE", 403), ("X", 403)])
@pytest.mark.parametrize("shape", ["/nginx", "/ingress-nginx", "/nginx-gateway-fabric", "/traefik", "/haproxy"])
async def test_the_described_method_decides_the_operation(shape: str, method: str, status: int) -> None:
    async with entry() as gateway:
        reader = login(gateway, permissions=("things:read",))
        assert (await uri(gateway, TARGET, reader, method=method, shape=shape)).status == status


@pytest.mark.parametrize("method", ["get", "delete", "CONNECT", "TRACE", "trace"])
async def test_a_described_method_that_the_proxy_refuses_is_refused(method: str) -> None:
    async with entry() as gateway:
        answer = await uri(gateway, TARGET, login(gateway), method=method)
        assert (answer.status, answer.reason) == (405, "method_refused")


async def test_a_described_head_does_not_change_the_framing_of_the_response() -> None:
    """Nginx and Caddy use GET to ask about a HEAD: a response without its body would desynchronise the connection."""
    async with entry() as gateway:
        client = await gateway.client()
        about_head = changed(FORWARDED, "X-Forwarded-Method", "HEAD")
        answer = await ask_on(client, "/traefik", about_head)
        assert answer.reason == "no_credential"
        assert len(answer.body) == int(answer.all(b"content-length")[0]) > 0
        assert (await ask_on(client, "/traefik", about_head, login(gateway))).status == 200
        # Conversely, a call with HEAD gets no body, also if it describes a GET.
        answer = await ask_on(client, "/traefik", FORWARDED, method="HEAD")
        assert (answer.status, answer.body) == (401, b"")
        assert (await ask_on(client, "/traefik", FORWARDED, login(gateway), method="HEAD")).status == 200
        assert (await ask_on(client, "/traefik", FORWARDED)).reason == "no_credential"


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "HEAD"])
async def test_the_method_that_the_ingress_itself_uses_does_not_matter(method: str) -> None:
    async with entry() as gateway:
        only = login(gateway, permissions=("things:read",))
        assert (await ask(gateway, "/nginx", ORIGINAL, only, method=method)).status == 200


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_untrusted_peer_is_refused_whatever_it_describes(shape: str) -> None:
    async with entry(trusted=("10.0.0.0/8", "fd00::/8")) as gateway:
        client = await gateway.client()
        for fields in (SHAPES[shape], ()):
            answer = await ask_on(
                client, shape, fields, login(gateway), "X-Forwarded-For: 10.0.0.1", "X-Real-IP: 10.0.0.1"
            )
            assert (answer.status, answer.reason) == (403, "peer_untrusted")


async def test_without_trusted_networks_every_peer_is_refused() -> None:
    async with entry(trusted=()) as gateway:
        assert (await ask(gateway, "/nginx", ORIGINAL, login(gateway))).reason == "peer_untrusted"


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("10.1.2.3", 200),
        ("::ffff:10.1.2.3", 200),
        ("::ffff:192.0.2.1", 403),
        ("::10.1.2.3", 403),
        ("fd00::1", 200),
        ("fe80::1", 403),
    ],
)
async def test_an_ipv4_mapped_ipv6_peer_is_the_ipv4_peer(address: str, status: int) -> None:
    async with entry(trusted=("10.0.0.0/8", "fd00::/8")) as gateway:
        connection, wire = connected(gateway, address)
        said = [f"{name}: {value}" for name, value in ORIGINAL]
        connection.data_received(get("/nginx", *said, login(gateway)))
        assert wire.sent.startswith(b"HTTP/1.1 %d " % status)
        connection.connection_lost(None)


async def test_a_described_request_line_has_the_same_limit_as_a_real_one() -> None:
    async with entry(max_request_line=300) as gateway:
        assert (await uri(gateway, "/v1/things/" + "a" * 200, login(gateway))).status == 200
        answer = await uri(gateway, "/v1/things/" + "a" * 300, login(gateway))
        assert (answer.status, answer.reason) == (414, "target_too_long")


async def test_the_body_of_a_call_is_not_read_as_a_call() -> None:
    async with entry() as gateway:
        client = await gateway.client()
        inner = get("/nginx", *(f"{name}: {value}" for name, value in ORIGINAL), login(gateway))
        said = [f"{name}: {value}" for name, value in ORIGINAL]
        whole = get("/nginx", *said, login(gateway), f"Content-Length: {len(inner)}", method="POST") + inner
        client.send(whole)
        assert (await client.answer()).status == 200
        client.send(whole[: -len(inner)])
        answer = await client.answer()
        assert (answer.status, answer.closes) == (200, True)
        client.send(inner)
        assert await client.rest() == b""


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_the_connection_closes_when_the_ingress_says_so(version: str) -> None:
    async with entry() as gateway:
        for lines, closes in ((("Connection: keep-alive",), False), (("Connection: close",), True)):
            client = await gateway.client()
            said = [f"{name}: {value}" for name, value in ORIGINAL]
            answer = await client.ask(get("/nginx", *said, login(gateway), *lines, version=version))
            assert (answer.status, answer.closes) == (200, closes)
            if closes:
                assert await client.rest() == b""
            else:
                assert answer.all(b"connection") == ([b"keep-alive"] if version == "1.0" else [])


@pytest.mark.parametrize("shape", ["/nginx", "/ingress-nginx", "/nginx-gateway-fabric", "/traefik", "/haproxy"])
async def test_a_report_only_route_sends_empty_headers_for_a_token_that_fails_authentication(shape: str) -> None:
    async with entry() as gateway:
        expired = login(gateway, expires_at=time.time() - 1)
        unable = login(gateway, permissions=())
        for _ in range(2):
            for lines in ((expired,), ("Authorization: Bearer nonsense",), ()):
                answer = await uri(gateway, "/report/a", *lines, shape=shape)
                assert answer.status == 200
                assert {name: answer.all(name.encode()) for name in IDENTITY} == {name: [b""] for name in IDENTITY}
            answer = await uri(gateway, "/report/a", unable, shape=shape)
            assert (answer.status, answer.all(b"x-auth-user")) == (200, [b"usr1"])


async def test_each_call_has_a_new_id_and_never_the_clients() -> None:
    async with entry() as gateway:
        client = await gateway.client()
        ids = set()
        for _ in range(3):
            answer = await ask_on(client, "/nginx", ORIGINAL, login(gateway), "X-Request-Id: mine")
            ids.update(answer.all(b"x-request-id"))
        assert len(ids) == 3 and b"mine" not in ids
