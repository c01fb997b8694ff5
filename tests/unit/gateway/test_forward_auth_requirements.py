"""Requirements in the URL of a forward-auth call: ``?entity=…&operation=…``, or as a segment of its path."""

from __future__ import annotations

import pytest

from proxy.core.model import Access
from proxy.core.request.requirement import Requirement, read_requirement
from tests.unit.gateway.ingress import DESCRIBING, SHAPES, ask, changed, entry, login, uri
from tests.unit.gateway.kit import Gateway, make_route

WANTED = "entity=channels&operation=publish"
FIXED = ("/nginx", "/ingress-nginx", "/nginx-gateway-fabric", "/traefik", "/haproxy")
"""The shapes whose query no client can change."""


def by_path(shape: str, text: str = WANTED) -> str:
    return f"/require/{text}{shape}"


async def verdict(gateway: Gateway, path: str, shape: str, *lines: str) -> tuple[int, str]:
    """Call at ``path`` with the fields of ``shape``; the status and the reason of the verdict."""
    answer = await ask(gateway, path, SHAPES[shape], *lines)
    reason = answer.all(b"x-patgate-reason")
    return answer.status, reason[0].decode() if reason else ""


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_requirement_in_the_path_is_judged_instead_of_the_routes_operation(shape: str) -> None:
    path = by_path(shape)
    async with entry() as gateway:
        publisher = login(gateway, permissions=("channels:publish",))
        reader = login(gateway, permissions=("things:read",))
        assert await verdict(gateway, path, shape, publisher) == (200, "")
        assert await verdict(gateway, path, shape, reader) == (403, "role_denies")
        assert await verdict(gateway, shape, shape, reader) == (200, "")
        assert await verdict(gateway, path, shape) == (401, "no_credential")
        narrow = login(gateway, permissions=("*:*",), scopes=["things:read"])
        assert await verdict(gateway, path, shape, narrow) == (403, "scope_denies")


@pytest.mark.parametrize("shape", FIXED)
async def test_a_requirement_in_the_query_is_the_same_where_no_client_can_change_the_query(shape: str) -> None:
    async with entry() as gateway:
        publisher = login(gateway, permissions=("channels:publish",))
        assert await verdict(gateway, f"{shape}?{WANTED}", shape, publisher) == (200, "")
        answer = await ask(gateway, f"{shape}?{WANTED}", SHAPES[shape], login(gateway, permissions=("things:read",)))
        assert answer.all(b"www-authenticate")[0].endswith(b'scope="channels:publish"')
        # Twice is a mistake, even if both are equal.
        twice = await verdict(gateway, f"{by_path(shape)}?{WANTED}", shape, publisher)
        assert twice == (400, "requirement_invalid")


@pytest.mark.parametrize("shape", ["/caddy", "/ original", "/ forwarded"])
async def test_a_query_that_a_client_may_have_sent_requires_nothing_and_replaces_nothing(shape: str) -> None:
    async with entry() as gateway:
        publisher = login(gateway, permissions=("channels:publish",))
        path = shape.partition(" ")[0]
        assert await verdict(gateway, f"{path}?{WANTED}", shape, publisher) == (403, "role_denies")
        wider = f"/require/entity=things&operation=delete{path}?{WANTED}"
        assert await verdict(gateway, wider, shape, publisher) == (403, "role_denies")


INVALID = (
    "",
    "entity=channels",
    "operation=publish",
    "entity=channels&operation=",
    "entity=&operation=publish",
    "entity=channels&operation=publish&",
    "&entity=channels&operation=publish",
    "entity=channels&&operation=publish",
    "entity=channels&operation=publish&operation=publish",
    "entity=channels&entity=things&operation=publish",
    "entity=channels&operation=publish&role=admin",
    "entity=channels&operation=publish&id=",
    "entity=channels&operation=publish&id=*",
    "entity=channels&operation=publish&id=a&id=b",
    "entity=channels&operation=publish&org=a&org=a",
    "entity=channels&operation=publish&id=a&org=b&id=a",
    "entity=*&operation=publish",
    "entity=channels&operation=*",
    "entity=channels&operation=publish;id=a",
    "entity=chan%6Eels&operation=publish",
    "entity=channels&operation=publish&id=a%2Fb",
    "Entity=channels&operation=publish",
    "entity=channels+&operation=publish",
    "entity[]=channels&operation=publish",
    "entity=channels&operation=publish=",
    f"entity={'a' * 65}&operation=publish",
    f"entity=channels&operation=publish&id={'a' * 256}",
)


@pytest.mark.parametrize("text", INVALID)
async def test_a_requirement_that_is_not_understood_is_never_a_yes(text: str) -> None:
    async with entry() as gateway:
        everything = login(gateway)
        for shape in FIXED:
            assert await verdict(gateway, f"{shape}?{text}", shape, everything) != (200, "") or not text
        for shape in SHAPES:
            expected = (400, "requirement_invalid")
            assert await verdict(gateway, by_path(shape, text), shape, everything) == expected, shape


@pytest.mark.parametrize(
    "path", ["/require", "/require/", f"/require/{WANTED}", f"/require/{WANTED}/x", "/nginx/require"]
)
async def test_a_path_with_a_requirement_and_no_shape_is_never_a_yes(path: str) -> None:
    async with entry() as gateway:
        for shape in DESCRIBING:
            assert await verdict(gateway, path, shape, login(gateway)) == (400, "forwarded_invalid")


@pytest.mark.parametrize("shape", FIXED)
async def test_every_part_of_the_grant_still_applies(shape: str) -> None:
    async with entry() as gateway:

        async def asked(text: str, *lines: str) -> tuple[int, str]:
            return await verdict(gateway, f"{shape}?{text}", shape, *lines)

        one = login(gateway, permissions=("channels/a:publish",))
        assert await asked(WANTED + "&id=a", one) == (200, "")
        assert await asked(WANTED + "&id=b", one) == (403, "role_denies")
        assert await asked(WANTED, one) == (403, "role_denies")
        assert await asked(WANTED + "&org=other", one) == (403, "org_mismatch")
        assert await asked(WANTED, login(gateway, expires_at=1.0)) == (401, "invalid_token")


async def test_the_routes_still_refuse_and_still_need_a_canonical_target() -> None:
    routes = [
        make_route("/open/**", Access.PUBLIC, index=0),
        make_route("/ui/**", Access.PASSTHROUGH, index=1),
        make_route("/shut/**", Access.DENIED, index=2),
        make_route("/orgs/{org}/things", Access.TOKEN, index=3),
        make_route("/report/**", Access.TOKEN, index=4, enforce=False),
    ]
    async with entry(routes=routes) as gateway:
        publisher = login(gateway, permissions=("channels:publish",))
        reader = login(gateway, permissions=("things:read",))
        shape = f"/nginx?{WANTED}"
        SHAPES.setdefault(shape, SHAPES["/nginx"])
        try:

            async def target(path: str, *lines: str) -> tuple[int, list[bytes]]:
                answer = await uri(gateway, path, *lines, shape=shape)
                return answer.status, answer.all(b"x-patgate-reason")

            assert await target("/shut/a", publisher) == (403, [b"route_denied"])
            assert await target("/shut/../open/a", publisher) == (400, [b"target_not_canonical"])
            # The ingress says that these need a permission.
            for path in ("/open/a", "/ui/a", "/nowhere"):
                assert await target(path, publisher) == (200, []), path
                assert await target(path, reader) == (403, [b"role_denies"]), path
                assert await target(path) == (401, [b"no_credential"]), path
            # The organisation of the route stays.
            assert await target("/orgs/elsewhere/things", publisher) == (403, [b"org_mismatch"])
            assert await target("/report/a", reader) == (200, [])
        finally:
            del SHAPES[shape]


async def test_an_organisation_that_contradicts_the_routes_is_refused() -> None:
    routes = [make_route("/orgs/{org}/things", Access.TOKEN)]
    async with entry(routes=routes) as gateway:
        fields = changed(SHAPES["/nginx"], "X-Original-URI", "/orgs/one/things")
        answer = await ask(gateway, f"/nginx?{WANTED}&org=two", fields, login(gateway))
        assert answer.all(b"x-patgate-reason") == [b"org_mismatch"]


async def test_an_allowed_request_without_a_route_is_counted_and_logged() -> None:
    async with entry(access="all") as gateway:
        publisher = login(gateway, permissions=("channels:publish",))
        fields = changed(SHAPES["/nginx"], "X-Original-URI", "/nowhere")
        for _ in range(2):
            assert (await ask(gateway, f"/nginx?{WANTED}", fields, publisher)).status == 200
        gateway.recorder.flush()
        assert [(each["route"], each["operation"], each["path"]) for each in gateway.access] == [
            ("-", "publish", "/nowhere")
        ] * 2
        counted = gateway.recorder.snapshot(hits=0, misses=0, entries=0, lag=0)
        assert counted.counters["patgate_requests_total"]["-", "allowed", "allowed"] == 2


def test_a_requirement_is_read_in_any_order() -> None:
    assert read_requirement(b"org=acme&operation=publish&id=a-1&entity=channels") == Requirement(
        "channels", "publish", "a-1", "acme"
    )
    assert read_requirement(WANTED.encode()) == Requirement("channels", "publish", None, None)
