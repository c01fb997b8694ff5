"""Calls by ``X-Original-URL``, and calls that two descriptions contradict."""

from __future__ import annotations

import pytest

from proxy.core.model import Access
from tests.unit.gateway.ingress import SHAPES, TARGET, URL, ask, carried, changed, entry, login
from tests.unit.gateway.kit import get, make_route


@pytest.mark.parametrize(
    "value",
    [
        "app.example.org" + TARGET,
        "//app.example.org" + TARGET,
        "ftp://app.example.org" + TARGET,
        "HTTP://app.example.org" + TARGET,
        "https:/app.example.org" + TARGET,
        "https:app.example.org" + TARGET,
        "https://" + TARGET,
        "https://app.example.org",
        "https://app.example.org?x=" + TARGET,
        "https://usr@app.example.org" + TARGET,
        "https://usr:pw@app.example.org" + TARGET,
        "https://open.example@app.example.org" + TARGET,
        "https://app.example.org\\@open.example" + TARGET,
        "https://app.example.org#" + TARGET,
        "https://app.example.org" + TARGET + "#x",
        "https://app.example.org" + TARGET + "?a#x",
        "https://app.example.org:" + TARGET.replace("/", ":") + TARGET,
        "https://app.example.org:99999" + TARGET,
        "https://app..example.org" + TARGET,
        "https://app.example.org,open.example" + TARGET,
        "https://app%2eexample.org" + TARGET,
        "https://[::1" + TARGET,
        "https://127.1" + TARGET,
        "https://app.example.org" + TARGET + ", https://app.example.org" + TARGET,
        "https://app.example.org" + TARGET + " https://app.example.org" + TARGET,
        " ",
    ],
)
@pytest.mark.parametrize("shape", ["/ingress-nginx", "/ url"])
async def test_an_invalid_original_url_is_refused(shape: str, value: str) -> None:
    routes = [make_route("/**", Access.PUBLIC)]
    async with entry(routes=routes) as gateway:
        answer = await ask(gateway, shape, changed(URL, "X-Original-URL", value))
        assert answer.status == 400
        assert (await ask(gateway, shape, URL)).status == 200


async def test_the_host_of_the_original_url_decides_the_route() -> None:
    routes = [
        make_route("/**", Access.PUBLIC, index=0, host="open.example"),
        make_route("/**", Access.DENIED, index=1),
    ]
    async with entry(routes=routes) as gateway:
        client = await gateway.client()
        for authority, status in (
            ("open.example", 200),
            ("OPEN.example.:8443", 200),
            ("shut.example", 403),
            ("shut.example:80", 403),
            ("open.example.shut.example", 403),
        ):
            for shape in ("/ingress-nginx", "/ url"):
                fields = changed(URL, "X-Original-URL", f"http://{authority}/a?b=http://open.example/")
                # The host of the call is that of the authentication service.
                said = [f"{name}: {value}" for name, value in fields]
                data = get(shape.partition(" ")[0], *said).replace(b"Host: gateway", b"Host: open.example")
                assert (await client.ask(data)).status == status, authority


LIES = (
    "https://app.example.org/shut/a",
    "https://app.example.org" + TARGET + "?",
    "https://app.example.org" + TARGET + "?a",
    "https://other.example" + TARGET,
    "https://app.example.org/v1/th%69ngs/42",
    TARGET,
    "",
    "nonsense",
)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if SHAPES[shape] != URL])
async def test_a_call_whose_x_original_url_describes_another_request_is_refused(shape: str) -> None:
    """The operator may have chosen the wrong shape: then the shape's own fields come from the client."""
    async with entry() as gateway:
        client = await gateway.client()
        said = [f"{name}: {value}" for name, value in SHAPES[shape]] + [login(gateway)]
        for lies in [(lie,) for lie in LIES] + [("https://app.example.org" + TARGET, LIES[0])]:
            urls = [f"X-Original-URL: {lie}" for lie in lies]
            data = get(shape.partition(" ")[0], *said, *urls).replace(b"Host: gateway", b"Host: app.example.org")
            answer = carried(shape, await client.ask(data))
            assert answer.status == 400, lies
            assert answer.all(b"x-patgate-reason") == [b"forwarded_invalid"]
        data = get(shape.partition(" ")[0], *said, f"X-Original-URL: https://APP.example.org:443{TARGET}")
        answer = await client.ask(data.replace(b"Host: gateway", b"Host: app.example.org"))
        # Where no shape is named, two descriptions are refused even if they agree.
        assert answer.status == (400 if shape == "/ original" or shape == "/ forwarded" else 200)


async def test_another_target_or_method_beside_an_original_url_is_refused() -> None:
    async with entry() as gateway:
        url = changed(URL, "X-Original-URL", "https://app.example.org" + TARGET + "?a=b")
        for name, value, status in (
            ("X-Original-URI", TARGET + "?a=b", 200),
            ("X-Original-URI", TARGET, 400),
            ("X-Original-URI", "/shut/a", 400),
            ("X-Original-URI", "", 400),
            ("X-Forwarded-Uri", TARGET + "?a=b", 200),
            ("X-Forwarded-Uri", "/shut/a", 400),
            ("X-Forwarded-Method", "GET", 200),
            ("X-Forwarded-Method", "PUT", 400),
            # A load balancer in front of the ingress may know the application by another name.
            ("X-Forwarded-Host", "www.example.org", 200),
        ):
            answer = await ask(gateway, "/ingress-nginx", (*url, (name, value)), login(gateway))
            assert answer.status == status, (name, value)
