"""Tokens that reach several organisations: each request is judged and forwarded in the one that it touches."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.core.identity import PRESETS
from proxy.core.ipc.shared_memory import SLOT_EPOCH
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Access, Grant, OrgGrant, by_org
from proxy.core.permissions import PermissionSet
from proxy.core.routes import Route
from proxy.core.token import Minted
from proxy.gateway.grants.cache import CacheEntry
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.ingress import entry
from tests.unit.gateway.kit import (
    IDENTITY,
    TOKENS,
    BackendConnection,
    Gateway,
    answering,
    field_lines,
    get,
    make_cache,
    make_grant,
    make_page,
    make_route,
    response,
    serving,
    until,
)
from tests.unit.gateway.scripted import Authority, authority_at

READ, EDIT, NOTHING = (PermissionSet.of(texts) for texts in (["things:read"], ["things:*"], []))
ACME = OrgGrant(org_id="org_acme", org_name="acme", role="viewer", permissions=READ)
BETA = OrgGrant(org_id="org_beta", org_name="beta", role="editor", permissions=EDIT)
ACCOUNT: dict[str, Any] = {"reach": Reach.ACCOUNT, "role": "admin", "orgs": by_org((ACME, BETA))}
ATTACHED: dict[str, Any] = {
    "reach": Reach.ORGS,
    "kind": Kind.KEY,
    "role": "",
    "permissions": (),
    "orgs": by_org((OrgGrant(org_id="org_acme", org_name="acme", role="", permissions=READ),)),
}
VERDICTS = [
    (ACCOUNT, "GET /orgs/acme/things/1", 200, b"acme", b"viewer"),
    (ACCOUNT, "GET /orgs/org_acme/things/1", 200, b"acme", b"viewer"),
    (ACCOUNT, "PUT /orgs/acme/things/1", 403, None, None),
    (ACCOUNT, "PUT /orgs/beta/things/1", 200, b"beta", b"editor"),
    (ACCOUNT, "GET /orgs/gamma/things/1", 403, None, None),
    (ACCOUNT, "DELETE /v1/things/1", 200, b"", b"admin"),
    (ACCOUNT, "DELETE /report/acme/1", 200, b"acme", b"viewer"),
    (ACCOUNT, "GET /report/gamma/1", 200, b"", b"admin"),
    (ATTACHED, "GET /orgs/acme/things/1", 200, b"acme", b""),
    (ATTACHED, "PUT /orgs/acme/things/1", 403, None, None),
    (ATTACHED, "GET /orgs/beta/things/1", 403, None, None),
    (ATTACHED, "GET /v1/things/1", 403, None, None),
    (ATTACHED, "GET /report/beta/1", 200, b"", b""),
]


def routes() -> list[Route]:
    return [
        make_route("/orgs/{org}/{entity}/{id}", Access.TOKEN, index=0),
        make_route("/report/{org}/{id}", Access.TOKEN, index=1, entity="things", enforce=False),
        make_route("/v1/{entity}/{id}", Access.TOKEN, index=2),
    ]


@pytest.mark.parametrize(("facts", "asked", "status", "org", "role"), VERDICTS)
async def test_the_backend_gets_the_organisation_that_the_request_touches(
    facts: dict[str, Any], asked: str, status: int, org: bytes | None, role: bytes | None
) -> None:
    method, target = asked.split()
    async with serving(answering(response()), routes=routes()) as (gateway, backend):
        minted = gateway.admit(**facts, token_name="ci")
        client = await gateway.client()
        for _ in range(2):
            answer = await client.ask(get(target, f"Authorization: Bearer {minted.token}", method=method))
            assert answer.status == status
            if org is None:
                assert answer.reason in ("role_denies", "org_mismatch")
                continue
            head = backend.connections[0].head
            assert (field_lines(head, "x-auth-org"), field_lines(head, "x-auth-role")) == ([org], [role])
            # All other headers are independent of the organisation.
            assert field_lines(head, "x-auth-user") == [b"usr1"] and field_lines(head, "x-auth-token-name") == [b"ci"]
            assert field_lines(head, "x-auth-token") == [minted.prefix.encode()]
        if org is None:
            assert not backend.connections


@pytest.mark.parametrize(("facts", "asked", "status", "org", "role"), VERDICTS)
async def test_an_ingress_gets_the_organisation_that_the_described_request_touches(
    facts: dict[str, Any], asked: str, status: int, org: bytes | None, role: bytes | None
) -> None:
    method, target = asked.split()
    async with entry(routes=routes()) as gateway:
        minted = gateway.admit(**facts)
        client = await gateway.client()
        described = (f"X-Forwarded-Method: {method}", f"X-Forwarded-Uri: {target}", "X-Forwarded-Host: a.example.org")
        answer = await client.ask(get("/traefik", *described, f"Authorization: Bearer {minted.token}"))
        assert answer.status == status
        if org is not None:
            assert (answer.all(b"x-auth-org"), answer.all(b"x-auth-role")) == ([org], [role])
            assert {name.decode() for name, _ in answer.fields} >= {name for _, name in PRESETS["patgate"].headers}


def stored(**facts: Any) -> CacheEntry:
    return make_cache().store(make_grant(TOKENS.mint(Kind.PAT), **facts), IDENTITY)


def test_a_grant_of_one_organisation_has_only_one_set_of_lines() -> None:
    assert stored().org_lines is None
    assert b"X-Auth-Role: admin\r\n" in stored().lines


def test_lines_for_an_organisation_are_built_once_on_first_use() -> None:
    held = stored(**ACCOUNT)
    assert held.org_lines is not None
    lines = held.org_lines.of("", "acme")
    assert held.org_lines.of("", "acme") is held.org_lines.of("", "org_acme") is lines != held.lines
    assert held.org_lines.of("", None) is held.org_lines.of("", "gamma") is held.lines


def test_cached_grants_share_equal_values() -> None:
    kept = [stored(**ACCOUNT).grant, stored(**ACCOUNT).grant]
    assert kept[0].orgs == ACCOUNT["orgs"]
    assert kept[0].orgs is not None and kept[1].orgs is not None
    assert kept[0].orgs["acme"] is kept[0].orgs["org_acme"]
    assert kept[0].orgs["acme"].org_id is kept[1].orgs["acme"].org_id


async def endless(connection: BackendConnection) -> None:
    """An event stream without an end."""
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await connection.send(b"5\r\ntick\n\r\n")
        await asyncio.sleep(0.01)


class World:
    """A gateway, and an authority that changes the grant of one account-wide token."""

    def __init__(self, gateway: Gateway, authority: Authority) -> None:
        self.gateway = gateway
        self.authority = authority
        self.minted: Minted = TOKENS.mint(Kind.PAT)

    def grant(self, *orgs: OrgGrant) -> Grant:
        keys = ("members:usr1", *(key for org in orgs for key in (f"org:{org.org_id}", f"member:{org.org_id}/usr1")))
        return make_grant(self.minted, reach=Reach.ACCOUNT, orgs=by_org(orgs), depends=keys)

    def changed(self, key: str, *orgs: OrgGrant) -> None:
        """Let the token reach these organisations from now on, and announce a change of this key."""
        self.authority.grants[self.minted.prefix] = self.grant(*orgs)
        since = self.authority.epoch
        self.gateway.page[SLOT_EPOCH] = epoch = self.authority.change(key)
        self.authority.push({"push": "changes", "since": since, "epoch": epoch, "keys": [key]})


@asynccontextmanager
async def world(handler: Any, *orgs: OrgGrant) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "link.sock"
        async with (
            authority_at(path) as authority,
            serving(handler, link_path=path, page=make_page(), routes=routes()) as (gateway, _),
        ):
            await until(lambda: gateway.link.up)
            here = World(gateway, authority)
            authority.grants[here.minted.prefix] = here.grant(*orgs)
            yield here


async def test_the_end_of_a_membership_cuts_exchanges_in_that_organisation_only() -> None:
    async with world(endless, ACME, BETA) as here:
        clients = {}
        for target in ("/orgs/acme/things/1", "/orgs/beta/things/1", "/v1/things/1"):
            clients[target] = client = await here.gateway.client()
            client.send(get(target, f"Authorization: Bearer {here.minted.token}"))
            await client.reader.readuntil(b"tick\n")
        here.changed("members:usr1", BETA)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            async with asyncio.timeout(HANGS_SECONDS):
                while True:
                    await clients["/orgs/acme/things/1"].reader.readuntil(b"tick\n")
        for target in ("/orgs/beta/things/1", "/v1/things/1"):
            for _ in range(20):
                await clients[target].reader.readuntil(b"tick\n")
        assert len(here.gateway.pipeline.live) == 2


async def test_the_next_request_on_a_connection_is_judged_by_the_current_memberships() -> None:
    async with world(answering(response()), ACME) as here:
        client = await here.gateway.client()

        async def status(target: str, method: str = "GET") -> int:
            data = get(target, f"Authorization: Bearer {here.minted.token}", method=method)
            return (await client.ask(data)).status

        assert [await status("/orgs/acme/things/1"), await status("/orgs/beta/things/1")] == [200, 403]
        here.changed("members:usr1", ACME, BETA)
        assert [await status("/orgs/beta/things/1"), await status("/orgs/acme/things/1", "PUT")] == [200, 403]
        here.changed("member:org_acme/usr1", OrgGrant(org_id="org_acme", org_name="acme", role="e", permissions=EDIT))
        assert [await status("/orgs/acme/things/1", "PUT"), await status("/orgs/beta/things/1")] == [200, 403]
        here.changed("org:org_acme")
        assert [await status("/orgs/acme/things/1"), await status("/v1/things/1")] == [403, 200]
