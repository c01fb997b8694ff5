"""Identity outputs: each configured output reaches the backend and the ingress, and none is accepted from a client."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from proxy.core.identity import PRESETS, IdentityHeaders, IdentityOutputs
from proxy.core.kinds import Reach
from proxy.core.model import Access, Grant, OrgGrant, by_org
from proxy.core.permissions import PermissionSet
from tests.unit.gateway.ingress import entry
from tests.unit.gateway.kit import Gateway, answering, field_lines, get, make_route, response, serving

HEADER = "X-Principal"


@dataclass(frozen=True)
class Principal:
    """A second output: one header that names the principal in its organisation."""

    separator: str = "@"

    @property
    def header_names(self) -> tuple[str, ...]:
        return (HEADER,)

    @property
    def anonymous(self) -> bytes:
        return f"{HEADER}: \r\n".encode()

    def lines(self, grant: Grant) -> bytes:
        return f"{HEADER}: {grant.user_id}{self.separator}{grant.org_name}\r\n".encode()


BOTH = IdentityOutputs((IdentityHeaders(PRESETS["patgate"]), Principal()))
ORGS = {
    "reach": Reach.ACCOUNT,
    "orgs": by_org((OrgGrant(org_id="o1", org_name="acme", role="v", permissions=PermissionSet.of(["things:read"])),)),
}
ROUTES = [
    make_route("/open/**", Access.PUBLIC, index=0),
    make_route("/ui/**", Access.PASSTHROUGH, index=1),
    make_route("/report/{id}", Access.TOKEN, index=2, entity="things", enforce=False),
    make_route("/orgs/{org}/{entity}/{id}", Access.TOKEN, index=3),
    make_route("/v1/{entity}/{id}", Access.TOKEN, index=4),
]
FORGED = tuple(f"{name}: root" for name in (HEADER, HEADER.lower(), HEADER.replace("-", "_"), "X-Auth-User"))
KNOWN = [("/v1/things/1", b"usr1@"), ("/orgs/acme/things/1", b"usr1@acme"), ("/report/1", b"usr1@")]


def bearer(gateway: Gateway) -> str:
    return f"Authorization: Bearer {gateway.admit(**ORGS).token}"


@pytest.mark.parametrize(("target", "principal"), KNOWN)
async def test_a_backend_gets_the_lines_of_every_output(target: str, principal: bytes) -> None:
    async with serving(answering(response()), routes=ROUTES, identity=BOTH) as (gateway, backend):
        answer = await (await gateway.client()).ask(get(target, bearer(gateway), *FORGED))
        assert answer.status == 200
        head = backend.connections[0].head
        assert (field_lines(head, HEADER), field_lines(head, "X-Auth-User")) == ([principal], [b"usr1"])


@pytest.mark.parametrize(("target", "values"), [("/report/1", [b""]), ("/open/a", []), ("/ui/a", [])])
async def test_a_backend_gets_empty_lines_for_an_unknown_caller_on_token_routes_only(
    target: str, values: list[bytes]
) -> None:
    async with serving(answering(response()), routes=ROUTES, identity=BOTH) as (gateway, backend):
        assert (await (await gateway.client()).ask(get(target, *FORGED))).status == 200
        head = backend.connections[0].head
        assert field_lines(head, HEADER) == field_lines(head, "X-Auth-User") == values


@pytest.mark.parametrize(("target", "principal"), KNOWN)
async def test_an_ingress_gets_the_lines_of_every_output(target: str, principal: bytes) -> None:
    async with entry(routes=ROUTES, identity=BOTH) as gateway:
        described = ("X-Original-Method: GET", f"X-Original-URI: {target}")
        answer = await (await gateway.client()).ask(get("/nginx", *described, bearer(gateway), *FORGED))
        assert (answer.status, answer.all(HEADER.lower().encode())) == (200, [principal])
        assert answer.all(b"x-auth-user") == [b"usr1"]


@pytest.mark.parametrize("target", ["/report/1", "/open/a", "/ui/a"])
async def test_an_ingress_gets_empty_lines_for_an_unknown_caller_on_every_route(target: str) -> None:
    async with entry(routes=ROUTES, identity=BOTH) as gateway:
        described = ("X-Original-Method: GET", f"X-Original-URI: {target}")
        answer = await (await gateway.client()).ask(get("/nginx", *described, *FORGED))
        assert (answer.status, answer.all(HEADER.lower().encode()), answer.all(b"x-auth-user")) == (200, [b""], [b""])


OWN = IdentityOutputs(BOTH.outputs, {"app": IdentityOutputs((IdentityHeaders(PRESETS["remote-user"]),))})
FORGED_FOR_ALL = (*FORGED, "Remote-User: root", "remote_user: root")


@pytest.mark.parametrize(("target", "role"), [("/v1/things/1", b"admin"), ("/orgs/acme/things/1", b"v")])
async def test_a_backend_gets_the_outputs_of_its_upstream_alone(target: str, role: bytes) -> None:
    async with serving(answering(response()), routes=ROUTES, identity=OWN) as (gateway, backend):
        client, login = await gateway.client(), bearer(gateway)
        for _ in range(2):
            assert (await client.ask(get(target, login, *FORGED_FOR_ALL))).status == 200
            head = backend.connections[0].head
            assert (field_lines(head, "Remote-User"), field_lines(head, "Remote-Groups")) == ([b"usr1"], [role])
            assert field_lines(head, HEADER) == field_lines(head, "X-Auth-User") == []


@pytest.mark.parametrize(("target", "values"), [("/report/1", [b""]), ("/open/a", []), ("/ui/a", [])])
async def test_an_unknown_caller_is_one_to_an_upstream_with_outputs_of_its_own(
    target: str, values: list[bytes]
) -> None:
    async with serving(answering(response()), routes=ROUTES, identity=OWN) as (gateway, backend):
        assert (await (await gateway.client()).ask(get(target, *FORGED_FOR_ALL))).status == 200
        head = backend.connections[0].head
        assert field_lines(head, "Remote-User") == values
        assert field_lines(head, HEADER) == field_lines(head, "X-Auth-User") == []


@pytest.mark.parametrize(("target", "user"), [("/v1/things/1", b"usr1"), ("/report/1", b""), ("/open/a", b"")])
async def test_an_ingress_gets_the_headers_that_other_upstreams_get_too_and_empty(target: str, user: bytes) -> None:
    async with entry(routes=ROUTES, identity=OWN) as gateway:
        described = ("X-Original-Method: GET", f"X-Original-URI: {target}")
        login = (bearer(gateway),) if user else ()
        answer = await (await gateway.client()).ask(get("/nginx", *described, *login, *FORGED_FOR_ALL))
        assert (answer.status, answer.all(b"remote-user")) == (200, [user])
        assert answer.all(HEADER.lower().encode()) == answer.all(b"x-auth-user") == [b""]


async def test_an_ingress_gets_the_global_headers_for_a_route_without_an_upstream_of_that_kind() -> None:
    own = IdentityOutputs(OWN.outputs, {"other": OWN.upstreams["app"]})
    async with entry(routes=ROUTES, identity=own) as gateway:
        described = ("X-Original-Method: GET", "X-Original-URI: /orgs/acme/things/1")
        answer = await (await gateway.client()).ask(get("/nginx", *described, bearer(gateway), *FORGED_FOR_ALL))
        assert (answer.status, answer.all(HEADER.lower().encode())) == (200, [b"usr1@acme"])
        assert answer.all(b"remote-user") == answer.all(b"remote-email") == [b""]


@pytest.mark.parametrize("target", ["/v1/things/1", "/orgs/acme/things/1", "/open/a", "/ui/a"])
async def test_a_header_that_only_another_upstream_gets_is_stripped_on_every_route(target: str) -> None:
    """Its name is of no preset, so that nothing but the outputs of that upstream strips it."""
    elsewhere = IdentityOutputs((IdentityHeaders(PRESETS["patgate"]),), {"other": IdentityOutputs((Principal(),))})
    async with serving(answering(response()), routes=ROUTES, identity=elsewhere) as (gateway, backend):
        login = () if target[1] in "ou" and "orgs" not in target else (bearer(gateway),)
        assert (await (await gateway.client()).ask(get(target, *login, *FORGED))).status == 200
        assert field_lines(backend.connections[0].head, HEADER) == []
        assert b"root" not in backend.connections[0].head


def test_outputs_are_compared_by_value_so_that_a_reload_sees_their_change() -> None:
    same = IdentityOutputs((IdentityHeaders(PRESETS["patgate"]), Principal()))
    assert same == BOTH
    assert same != IdentityOutputs((IdentityHeaders(PRESETS["patgate"]), Principal(separator="/")))
    assert same != IdentityOutputs((IdentityHeaders(PRESETS["patgate"]),))
    assert same != OWN
