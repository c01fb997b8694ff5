"""Authentication on TCP: accepted credentials, and the responses to all others."""

from __future__ import annotations

import asyncio
import os
import pwd
import time

import pytest

from proxy.authority.runtime import CONFIGURATION
from proxy.control.authenticate import ApiAuthenticator
from proxy.control.throttle import AT_ONCE, Throttle
from proxy.core.model import Grant, RefusedGrant
from proxy.core.token import checksum
from proxy.observe import metrics
from proxy.store import tables
from tests.support.process import HANGS_SECONDS
from tests.unit.control.api_client import API, minted, ok, person, refused, request
from tests.unit.control.conftest import World

INVALID_REQUEST = 'Bearer realm="acme", error="invalid_request"'
INVALID_TOKEN = 'Bearer realm="acme", error="invalid_token"'
WRONG = "acme_pat_0123456789ab_00000000000000000000000000000000000000"


async def admin(world: World) -> str:
    await person(world, "root@example.org", "admin")
    return str((await minted(world, "root@example.org"))["token"])


def flipped(token: str) -> str:
    """Another secret for the same prefix, with a valid checksum."""
    body = token[:-7] + ("A" if token[-7] != "A" else "B")
    return body + checksum(body)


async def test_a_token_is_accepted_in_either_header(world: World) -> None:
    token = await admin(world)
    for headers in ({"Authorization": f"Bearer {token}"}, {"Authorization": f"bearer  {token}"}, {"X-API-Key": token}):
        async with world.tcp.get(f"{API}/me", headers=headers) as answer:
            assert answer.status == 200
            me = await answer.json()
            assert (me["kind"], me["user"]["email"]) == ("pat", "root@example.org")


async def test_callers_on_the_socket_are_operators(world: World) -> None:
    me = await ok(world, "GET", "/me")
    user = f"{pwd.getpwuid(os.geteuid()).pw_name} (uid {os.geteuid()})"
    assert (me["kind"], me["name"], me["user"], me["token"]) == ("system", user, None, None)


@pytest.mark.parametrize(
    ("headers", "status", "reason", "challenge"),
    [
        ([], 401, "no_credential", 'Bearer realm="acme"'),
        ([("Authorization", "Basic eDp5")], 401, "no_credential", 'Bearer realm="acme"'),
        ([("Authorization", "Negotiate x")], 401, "no_credential", 'Bearer realm="acme"'),
        ([("Cookie", "token=x")], 401, "no_credential", 'Bearer realm="acme"'),
        ([("Authorization", "Bearer")], 400, "credential_malformed", 'Bearer realm="acme", error="invalid_request"'),
        (
            [("Authorization", "Bearer a b")],
            400,
            "credential_malformed",
            'Bearer realm="acme", error="invalid_request"',
        ),
        ([("Authorization", "")], 400, "credential_malformed", 'Bearer realm="acme", error="invalid_request"'),
        ([("X-API-Key", "")], 400, "credential_malformed", 'Bearer realm="acme", error="invalid_request"'),
        (
            [("X-API-Key", WRONG), ("Authorization", f"Bearer {WRONG}")],
            400,
            "credential_ambiguous",
            'Bearer realm="acme", error="invalid_request"',
        ),
        (
            [("X-API-Key", WRONG), ("X-API-Key", WRONG)],
            400,
            "credential_ambiguous",
            'Bearer realm="acme", error="invalid_request"',
        ),
        (
            [("Authorization", f"Bearer {WRONG}"), ("Authorization", f"Bearer {WRONG}")],
            400,
            "credential_ambiguous",
            'Bearer realm="acme", error="invalid_request"',
        ),
        ([("Authorization", f"Bearer {WRONG}")], 401, "invalid_token", 'Bearer realm="acme", error="invalid_token"'),
        ([("X-API-Key", "no token")], 401, "invalid_token", 'Bearer realm="acme", error="invalid_token"'),
    ],
)
async def test_other_credentials_are_refused_with_their_challenge(
    world: World, headers: list[tuple[str, str]], status: int, reason: str, challenge: str
) -> None:
    async with world.tcp.get(f"{API}/users", headers=headers) as answer:
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (status, challenge)
        problem = await answer.json(content_type="application/problem+json")
    assert problem["reason"] == reason
    assert problem["decision"] == answer.headers["X-Request-Id"]
    assert WRONG not in str(problem)


async def test_all_invalid_tokens_get_the_same_response(world: World) -> None:
    """Unknown, wrong, revoked, expired, of a suspended owner: only the log has the difference."""
    await admin(world)
    for name in ("ada", "bob"):
        await person(world, f"{name}@example.org", "viewer")
    ada = await minted(world, "ada@example.org")
    gone, late, bobs = [await minted(world, f"{name}@example.org") for name in ("ada", "ada", "bob")]
    await ok(world, "POST", f"/tokens/{gone['id']}/revoke")
    async with world.authority._store.change(CONFIGURATION) as change:
        mine = tables.tokens.c.id == late["id"]
        await change.connection.execute(tables.tokens.update().where(mine).values(expires_at=change.now))
        change.touched(f"token:{late['id']}")
        change.audit("account.pat.expire", target_kind="token", target_id=late["id"])
    await ok(world, "POST", "/users/bob@example.org/suspend")
    tokens = [WRONG, flipped(ada["token"]), gone["token"], late["token"], bobs["token"]]
    seen = set()
    for token in tokens:
        async with world.tcp.get(f"{API}/me", headers={"X-API-Key": token}) as answer:
            problem = await answer.json(content_type="application/problem+json")
            decision = problem.pop("decision")
            head = [(n, v) for n, v in answer.headers.items() if n.lower() not in ("date", "x-request-id")]
            assert answer.headers["X-Request-Id"] == decision
            seen.add((answer.status, str(problem), str(head)))
    assert len(seen) == 1
    counted = world.authority.metrics().counters[metrics.API_REFUSALS.name]
    assert {reason for (reason,) in counted} == {
        "token_unknown",
        "token_wrong_secret",
        "token_revoked",
        "token_expired",
        "owner_suspended",
    }


async def test_an_address_with_too_many_failures_is_throttled_and_its_genuine_tokens_are_not(world: World) -> None:
    token = await admin(world)
    statuses: list[int] = []
    after = None
    begun = time.monotonic()
    async with asyncio.timeout(HANGS_SECONDS):
        while 429 not in statuses:
            async with world.tcp.get(f"{API}/me", headers={"X-API-Key": WRONG}) as answer:
                statuses.append(answer.status)
                after = answer.headers.get("Retry-After")
    assert after is not None and int(after) >= 1
    # One more failure a second, for as long as these took.
    assert AT_ONCE <= statuses.count(401) <= AT_ONCE + 1 + time.monotonic() - begun
    assert set(statuses) == {401, 429}
    assert (await ok(world, "GET", "/me", token=token))["kind"] == "pat"


async def test_over_the_limit_nothing_is_hashed(world: World) -> None:
    """A token without a digest needs the slow hash, which an address with too many failures does not get."""
    token = await admin(world)
    await _forget_digest(world, token)
    for _ in range(AT_ONCE + 2):
        await refused(world, "GET", "/me", token=WRONG)
    before = _hashes(world)
    status, problem, _ = await request(world, "GET", "/me", token=token)
    assert (status, problem["reason"]) in ((429, "too_many_failures"), (200, None))
    assert status == 200 or _hashes(world) == before


async def test_a_token_without_a_digest_is_verified_once_and_counts_as_no_failure(world: World) -> None:
    token = await admin(world)
    await _forget_digest(world, token)
    before = _hashes(world)
    for _ in range(AT_ONCE + 5):
        assert (await ok(world, "GET", "/me", token=token))["kind"] == "pat"
    assert _hashes(world) == before + 1
    for _ in range(AT_ONCE):
        assert (await refused(world, "GET", "/me", token=WRONG))["status"] == 401


async def test_no_wrong_secret_of_a_known_prefix_is_hashed(world: World) -> None:
    token = await admin(world)
    before = _hashes(world)
    for _ in range(5):
        await refused(world, "GET", "/me", token=flipped(token))
    assert _hashes(world) == before


async def test_a_token_that_is_revoked_during_its_request_changes_nothing(world: World) -> None:
    """The credential is checked again in the transaction of the change."""
    token = await admin(world)
    entered, go_on = asyncio.Event(), asyncio.Event()
    verify = world.authority.verify

    async def slowly(token: str, *, prove: bool) -> Grant | RefusedGrant | None:
        found = await verify(token, prove=prove)
        entered.set()
        await go_on.wait()
        return found

    world.authority.verify = slowly  # type: ignore[method-assign]  # to stop a request between authentication and transaction
    late = asyncio.create_task(request(world, "POST", "/orgs", {"name": "late"}, token=token), name="late")
    await entered.wait()
    me = (await ok(world, "GET", "/users/root@example.org"))["id"]
    mine = (await ok(world, "GET", f"/tokens?user={me}"))["items"][0]["id"]
    await ok(world, "POST", f"/tokens/{mine}/revoke")
    go_on.set()
    status, problem, answer = await late
    assert (status, problem["reason"]) == (401, "invalid_token")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="acme", error="invalid_token"'
    assert (await ok(world, "GET", "/orgs"))["items"] == []


async def test_a_missing_permission_is_named_in_the_challenge(world: World) -> None:
    await person(world, "ada@example.org", "viewer")
    token = (await minted(world, "ada@example.org"))["token"]
    status, problem, answer = await request(world, "GET", "/users", token=token)
    assert (status, problem["reason"]) == (403, "forbidden")
    challenge = 'Bearer realm="acme", error="insufficient_scope", scope="patgate.users:list"'
    assert answer.headers["WWW-Authenticate"] == challenge


async def test_the_audit_log_has_the_request_and_its_caller(world: World) -> None:
    token = await admin(world)
    _, _, answer = await request(world, "POST", "/orgs", {"name": "red"}, token=token)
    (event,) = (await ok(world, "GET", "/audit?action=account.org.add"))["items"]
    assert event["request_id"] == answer.headers["X-Request-Id"]
    assert (event["actor_kind"], event["actor_name"], event["address"]) == ("pat", "test", "127.0.0.1")


async def _forget_digest(world: World, token: str) -> None:
    """Remove the digest, as after a change of the cache key."""
    token_id = token.split("_")[2]
    async with world.authority._store._database.write() as connection:
        await connection.execute(tables.tokens.update().where(tables.tokens.c.id == token_id).values(digest=None))
        await connection.commit()


def _hashes(world: World) -> float:
    counted = world.authority.metrics().counters.get(metrics.ARGON2.name, {})
    return sum(value for (outcome,), value in counted.items() if outcome in ("matched", "mismatched"))


async def test_a_request_cancelled_during_verification_counts_as_no_failure(world: World) -> None:
    """A cancelled verification does not mean that the token is wrong."""
    token = await admin(world)
    await _forget_digest(world, token)
    throttle = Throttle(time.monotonic, per_second=0.0)
    authenticator = ApiAuthenticator(world.authority, throttle)
    verify, entered = world.authority.verify, asyncio.Event()

    async def never(token: str, *, prove: bool) -> Grant | RefusedGrant | None:
        if not prove:
            return await verify(token, prove=False)
        entered.set()
        await asyncio.Event().wait()
        return None

    world.authority.verify = never  # type: ignore[method-assign]  # to cancel a request during verification
    for _ in range(AT_ONCE + 1):
        entered.clear()
        task = asyncio.create_task(authenticator._verify(token, "192.0.2.1"), name="cancelled request")
        await entered.wait()
        assert len(throttle) == 1, "it is counted during the verification"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert len(throttle) == 0
