"""Explanations of requests and of past decisions, and the callers who may see them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.core.challenge import Challenges
from proxy.core.credential_places import BEARER, CredentialPlaces
from proxy.core.errors import Invalid, NotFound, Unauthenticated
from proxy.core.identity import PRESETS, IdentityHeaders, IdentityOutputs
from proxy.core.kinds import Reach
from proxy.core.model import Access
from proxy.core.reasons import TABLE, Reason
from proxy.core.routes import Route, RouteTable
from proxy.core.token import WHOLE_TOKEN
from proxy.observe.metrics import Outcome
from proxy.services import lookup
from proxy.services.accounts.members import MemberService
from proxy.services.explain.explanation import Explanation, Gateway
from proxy.services.explain.service import _NO_QUERY, NO_DECISION, NO_ORG, Decision, ExplainService
from proxy.services.explain.steps import Result, Step
from proxy.services.tokens.authorization import NO_TOKEN
from proxy.services.tokens.issuance import KeyRequest
from proxy.services.views import Created
from proxy.store.audit.chain import Event
from proxy.store.audit.request_events import RequestEvent
from tests.contract.kit import ADMIN, FORMAT, Kit, opened

ANN = "ann@example.org"
BOB = "bob@example.org"
ROUTES = (
    Route(index=0, path="/public/**", access=Access.PUBLIC),
    Route(index=1, path="/never/**", access=Access.DENIED),
    Route(index=2, path="/later/{entity}", enforce=False),
    Route(index=3, path="/only/{entity}", host="api.example"),
    Route(index=4, path="/orgs/{org}/{entity}/{id}"),
    Route(index=5, path="/v1/{entity}/{id}", upstream="app"),
    Route(index=6, path="/v2/{id}", entity="things", query=((b"do", b"push"),), operations={"GET": "update"}),
    Route(index=7, path="/v2/{id}", entity="things", strip_prefix="/v2"),
)


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        await kit.users.add(ADMIN, BOB, "admin")
        yield kit


def explaining(kit: Kit, routes: tuple[Route, ...] = ROUTES) -> ExplainService:
    gateway = Gateway(
        routes=RouteTable(routes),
        challenges=Challenges(realm="acme", places=CredentialPlaces([BEARER])),
        identity=IdentityOutputs((IdentityHeaders(PRESETS["patgate"]),)),
        longest=8192,
    )
    return ExplainService(kit.store, kit.clock, gateway=gateway, tokens=FORMAT)


async def explanation(kit: Kit, made: Created, method: str, target: str, host: str = "") -> Explanation:
    return await explaining(kit).token(ADMIN, made.view.id, method, target, host)


def failed(explained: Explanation) -> tuple[Step, str]:
    """The one step that failed, and its explanation."""
    (only,) = [step for step in explained.findings.steps() if step.result is Result.FAIL]
    return only.step, only.text


async def test_an_allowed_request_shows_the_matching_entries_and_the_identity_headers(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci", scopes=["things/7:update", "*:list"])
    explained = await explanation(kit, made, "PUT", "/v1/things/7?secret=1")
    found = explained.as_dict()
    assert (found["verdict"], found["reason"], found["status"], found["challenge"]) == ("allowed", "allowed", None, [])
    assert (found["method"], found["path"], found["route"], found["upstream"]) == (
        "PUT", "/v1/things/7", "/v1/{entity}/{id}", "app",
    )  # fmt: skip
    assert (found["operation"], found["entity"], found["entity_id"], found["permission"]) == (
        "update", "things", "7", "things/7:update",
    )  # fmt: skip
    assert (found["role"], found["role_entry"], found["scope_entry"]) == ("editor", "things:*", "things/7:update")
    token = found["token"]
    assert isinstance(token, dict)
    assert (token["prefix"], token["name"], token["user"], token["status"]) == (made.view.prefix, "ci", ANN, "active")
    assert dict(explained.identity)["X-Auth-Email"] == ANN
    assert all(step.result is Result.PASS for step in explained.findings.steps())
    assert "secret" not in str(found)


async def _nothing(_kit: Kit, _user: str, _token: str) -> None:
    return None


async def _revoke(kit: Kit, _user: str, token: str) -> None:
    await kit.tokens.revoke(ADMIN, token)


async def _expire(kit: Kit, _user: str, _token: str) -> None:
    kit.clock.now += 3600


async def _suspend(kit: Kit, user: str, _token: str) -> None:
    await kit.users.suspend(ADMIN, user)


async def _remove(kit: Kit, user: str, _token: str) -> None:
    await kit.users.remove(ADMIN, user)


REFUSALS: dict[str, tuple[Callable[[Kit, str, str], Awaitable[None]], str, str, Reason, Step, str]] = {
    "method": (_nothing, "get", "/v1/things/7", Reason.METHOD_REFUSED, Step.ROUTE, "capitals"),
    "path": (_nothing, "GET", "/v1/../x", Reason.TARGET_NOT_CANONICAL, Step.ROUTE, "(dot_segment)"),
    "allowance": (_nothing, "GET", "/v1/things/7;a", Reason.TARGET_NOT_CANONICAL, Step.ROUTE, "/v1/{entity}/{id}: "),
    "form": (_nothing, "GET", "/v1/things/7;a", Reason.TARGET_NOT_CANONICAL, Step.ROUTE, "(semicolon)"),
    "no path": (_nothing, "GET", "ftp://a/b", Reason.TARGET_NOT_CANONICAL, Step.ROUTE, "(not_a_path)"),
    "query": (_nothing, "GET", "/v2/7?do=a&do=b", Reason.QUERY_AMBIGUOUS, Step.ROUTE, "/v2/{id}?do=push: "),
    "malformed": (_nothing, "GET", "/v1/a b", Reason.REQUEST_MALFORMED, Step.ROUTE, "HTTP/1.1"),
    "long": (_nothing, "GET", "/" + "a" * 9000, Reason.TARGET_TOO_LONG, Step.ROUTE, "longer"),
    "no route": (_nothing, "GET", "/nowhere", Reason.NO_ROUTE, Step.ROUTE, "no route is for"),
    "denied": (_nothing, "GET", "/never/x", Reason.ROUTE_DENIED, Step.ROUTE, "/never/**: "),
    "revoked": (_revoke, "GET", "/v1/things/7", Reason.TOKEN_REVOKED, Step.TOKEN, "revoked 20"),
    "expired": (_expire, "GET", "/v1/things/7", Reason.TOKEN_EXPIRED, Step.EXPIRY, "expired 20"),
    "suspended": (_suspend, "GET", "/v1/things/7", Reason.OWNER_SUSPENDED, Step.OWNER, "owner is suspended"),
    "removed": (_remove, "GET", "/v1/things/7", Reason.OWNER_REMOVED, Step.OWNER, "owner was removed"),
    "organisation": (
        _nothing, "GET", "/orgs/team/things/7", Reason.ORG_MISMATCH, Step.ORGANISATION,
        "about team; the token is personal",
    ),
    "operation": (_nothing, "PURGE", "/v1/things/7", Reason.OPERATION_UNMAPPED, Step.OPERATION, "no operation"),
    "role": (
        _nothing, "GET", "/v1/others/7", Reason.ROLE_DENIES, Step.ROLE,
        "the role editor does not have others/7:read; it has things:*",
    ),
    "scopes": (
        _nothing, "DELETE", "/v1/things/7", Reason.SCOPE_DENIES, Step.SCOPES,
        "the token does not have things/7:delete; it has things:read",
    ),
}  # fmt: skip


async def test_a_refusal_shows_the_failed_step_the_reason_and_the_response(kit: Kit) -> None:
    for name, (prepare, method, target, reason, step, text) in REFUSALS.items():
        user = f"{name.replace(' ', '-')}@example.org"
        await kit.users.add(ADMIN, user, "editor")
        made = await kit.mint(user, "ci", expires=3600.0, scopes=["things:read"])
        await prepare(kit, made.view.user_id or "", made.view.id)
        explained = await explanation(kit, made, method, target)
        assert (explained.judged.reason, explained.judged.outcome) == (reason, Outcome.REFUSED), name
        where, why = failed(explained)
        assert (where, text in why) == (step, True), why
        found = explained.as_dict()
        row = TABLE[reason]
        assert (found["status"], found["public_reason"], found["detail"]) == (row.status, row.public, row.detail)
        assert bool(found["challenge"]) is (row.status in (400, 401) or row.challenge.value == "insufficient_scope")
        assert explained.identity == ()


async def test_a_team_token_is_refused_for_its_organisation_and_its_membership(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci", org="team")
    assert (await explanation(kit, made, "GET", "/orgs/team/things/7")).judged.reason is Reason.ALLOWED
    assert failed(await explanation(kit, made, "GET", "/orgs/other/things/7"))[1].endswith(
        "the token reaches team only"
    )
    denied = await explanation(kit, made, "DELETE", "/orgs/team/things/7")
    assert "the role viewer in team does not have things/7:delete" in failed(denied)[1]
    await kit.orgs.suspend(ADMIN, "team")
    assert (await explanation(kit, made, "GET", "/v1/things/7")).judged.reason is Reason.ORG_SUSPENDED
    await kit.orgs.resume(ADMIN, "team")
    await MemberService(kit.store, kit.clock).remove(ADMIN, "team", ANN)
    gone = await explanation(kit, made, "GET", "/v1/things/7")
    assert (gone.judged.reason, failed(gone)[0]) == (Reason.MEMBER_REMOVED, Step.OWNER)


async def test_an_account_wide_token_is_explained_with_its_role_in_the_requests_organisation(kit: Kit) -> None:
    made = await kit.mint(ANN, "everywhere", reach=Reach.ACCOUNT)
    there = (await explanation(kit, made, "GET", "/orgs/team/things/7")).as_dict()
    assert (there["verdict"], there["role"], there["role_org"]) == ("allowed", "viewer", "team")
    here = (await explanation(kit, made, "DELETE", "/v1/things/7")).as_dict()
    assert (here["verdict"], here["role"], here["role_org"]) == ("allowed", "editor", None)
    identity = dict((await explanation(kit, made, "GET", "/orgs/team/things/7")).identity)
    assert (identity["X-Auth-Org"], identity["X-Auth-Role"]) == ("team", "viewer")
    elsewhere = await explanation(kit, made, "GET", "/orgs/other/things/7")
    assert "the token reaches team" in failed(elsewhere)[1]


async def test_a_report_only_route_forwards_what_it_would_refuse(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci")
    explained = await explanation(kit, made, "POST", "/later/others")
    found = explained.as_dict()
    assert (found["verdict"], found["reason"], found["status"], found["enforce"]) == (
        "reported", "role_denies", 403, False,
    )  # fmt: skip
    assert dict(explained.identity)["X-Auth-Email"] == ANN
    await kit.tokens.revoke(ADMIN, made.view.id)
    anonymous = await explanation(kit, made, "POST", "/later/others")
    assert anonymous.judged.outcome is Outcome.REPORTED
    assert {value for _, value in anonymous.identity} == {""}


async def test_an_open_route_does_not_check_tokens(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci")
    await kit.tokens.revoke(ADMIN, made.view.id)
    explained = await explanation(kit, made, "GET", "/public/x")
    assert (explained.judged.reason, explained.identity) == (Reason.ALLOWED, ())
    results = [step.result for step in explained.findings.steps()]
    assert results == [Result.PASS, *[Result.NOT_REACHED] * (len(Step) - 1)]


async def test_the_host_is_the_given_one_or_the_urls(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci")
    assert (await explanation(kit, made, "GET", "/only/things")).judged.reason is Reason.NO_ROUTE
    assert (await explanation(kit, made, "GET", "/only/things", "API.example:443")).judged.reason is Reason.ALLOWED
    assert (await explanation(kit, made, "GET", "https://api.example/only/things?q")).judged.reason is Reason.ALLOWED
    assert (await explanation(kit, made, "GET", "/only/things", "api example")).judged.reason is Reason.HOST_INVALID


async def test_a_whole_token_is_refused_in_every_field_and_not_repeated(kit: Kit) -> None:
    made, explain = await kit.mint(ANN, "ci"), explaining(kit)
    for place, field in enumerate(("token", "method", "path", "host")):
        values = [made.view.id, "GET", "/v1/things/7", ""]
        values[place] = f"x{made.value}"
        with pytest.raises(Invalid) as caught:
            await explain.token(ADMIN, *values)
        assert caught.value.errors == ((field, WHOLE_TOKEN),)
    with pytest.raises(Invalid) as caught:
        await explain.decision(ADMIN, made.value)
    assert caught.value.errors == (("decision", WHOLE_TOKEN),)


async def test_a_token_is_found_only_by_its_id_or_prefix(kit: Kit) -> None:
    made, explain = await kit.mint(ANN, "ci"), explaining(kit)
    for name in (made.view.id, made.view.prefix):
        assert (await explain.token(ADMIN, name, "GET", "/v1/things/7")).judged.reason is Reason.ALLOWED
    for name in ("", "000000000000", "evil_pat_" + made.view.id, "acme_key_" + made.view.id, "_" + made.view.id):
        with pytest.raises(NotFound, match=NO_TOKEN):
            await explain.token(ADMIN, name, "GET", "/v1/things/7")


async def test_an_invisible_token_gives_the_same_error_as_an_unknown_one(kit: Kit) -> None:
    mine = await kit.mint(ANN, "mine")
    scoped = await kit.mint(ANN, "narrow", scopes=["things:read"])
    team = await kit.mint(ANN, "team", org="team")
    admins, explain = await kit.mint(BOB, "admin's"), explaining(kit)

    async def may(actor: Created, token: Created) -> bool:
        try:
            await explain.token(kit.acting(actor), token.view.id, "GET", "/v1/things/7")
        except NotFound as error:
            assert str(error) == NO_TOKEN
            return False
        return True

    assert await may(mine, mine) and await may(mine, scoped)
    assert await may(scoped, scoped) and not await may(scoped, mine)
    assert not await may(mine, team) and not await may(mine, admins) and not await may(team, mine)
    assert await may(admins, mine) and await may(admins, team)
    await kit.tokens.revoke(ADMIN, mine.view.id)
    with pytest.raises(Unauthenticated):
        await explain.token(kit.acting(mine), mine.view.id, "GET", "/v1/things/7")


async def test_an_organisation_token_is_explained_only_for_organisations_that_the_caller_sees(kit: Kit) -> None:
    for org in ("other", "third"):
        await kit.orgs.add(ADMIN, org)
    grants = {"team": ["things:read"], "other": ["things:*"]}
    key = await kit.keys.create(ADMIN, KeyRequest(name="robot", grants=grants))
    await kit.roles.set(ADMIN, "keeper", ["patgate.keys:read", "patgate.keys:list"])
    await kit.users.add(ADMIN, "keeper@example.org", "keeper", org="team")
    keeper = kit.acting(await kit.mint("keeper@example.org", "k", org="team"))
    explain = explaining(kit)
    there = await explain.token(keeper, key.view.id, "GET", "/orgs/team/things/7")
    assert there.judged.reason is Reason.ALLOWED
    for org in ("other", "third", "nowhere"):
        with pytest.raises(NotFound, match=NO_ORG):
            await explain.token(keeper, key.view.id, "GET", f"/orgs/{org}/things/7")
    assert NO_ORG == lookup._NO_ORG
    without = await explain.token(keeper, key.view.id, "GET", "/v1/things/7")
    assert without.judged.reason is Reason.ORG_MISMATCH
    assert "other" not in str(without.as_dict())
    assert "other, team" in failed(await explain.token(ADMIN, key.view.id, "GET", "/v1/things/7"))[1]


async def happened(kit: Kit, made: Created | None, decision: str = "d" * 24, **changes: Any) -> None:
    """An event of a request, as the gateway records it, a second after the previous one."""
    kit.clock.now += 1
    event = Event(
        action="request.update", target_kind="route", target_id="things/7", target_name="/v1/{entity}/{id}",
        outcome="refused", reason="role_denies", address="192.0.2.7", request_id=decision, decision_id=decision,
        details={
            "method": "PUT", "path": changes.pop("path", "/v1/things/7"), "status": 403,
            **({"requirement": changes.pop("requirement")} if "requirement" in changes else {}),
        },
    )  # fmt: skip
    prefix = "" if made is None else made.view.prefix
    await kit.store.append_requests(
        [RequestEvent(event=replace(event, **changes), prefix=prefix, proven=made is not None, at=kit.clock.now)]
    )


async def decided(kit: Kit, decision: str = "d" * 24) -> Decision:
    return await explaining(kit).decision(ADMIN, decision)


async def test_a_decision_is_shown_with_the_result_of_the_same_request_now(kit: Kit) -> None:
    await kit.users.set_role(ADMIN, ANN, "viewer")
    made = await kit.mint(ANN, "ci")
    await happened(kit, made)
    same = await decided(kit)
    assert (same.differences, same.notes, same.since) == ((), (), ())
    kit.clock.now += 60
    await kit.users.set_role(ADMIN, ANN, "editor")
    found = await decided(kit)
    assert found.differences == ("it was refused, now it would be allowed",)
    document = found.as_dict()
    then, now = document["then"], document["now"]
    assert isinstance(then, dict) and isinstance(now, dict)
    assert (then["reason"], then["status"], then["method"], then["path"]) == ("role_denies", 403, "PUT", "/v1/things/7")
    assert (then["token_name"], then["user"], then["address"]) == ("ci", ANN, "192.0.2.7")
    assert (now["verdict"], now["role_entry"]) == ("allowed", "things:*")
    (change,) = found.since
    assert (change.action, change.name, change.by) == ("account.user.set_role", ANN, ADMIN.name)


async def test_another_reason_and_another_route_are_differences(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci", scopes=["things:read"])
    await happened(kit, made, target_name="/gone/{id}")
    assert (await decided(kit)).differences == (
        "the route was /gone/{id}, now it is /v1/{entity}/{id}",
        "the reason was role_denies, now it would be scope_denies",
    )


async def test_a_changed_operation_or_entity_of_the_route_is_a_difference(kit: Kit) -> None:
    """So it is for an event of an older version, which lacks the requirement that the decision was made by."""
    made = await kit.mint(ANN, "ci", scopes=["things:read"])
    await happened(kit, made, action="request.publish", target_id="channels/7", reason="scope_denies")
    assert (await decided(kit)).differences == ("it needed channels/7:publish, now it would need things/7:update",)


async def test_the_query_of_the_request_selects_the_route(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci", scopes=["things:read"])
    pushed = await explanation(kit, made, "GET", "/v2/7?do=push")
    assert (pushed.judged.reason, failed(pushed)[0]) == (Reason.SCOPE_DENIES, Step.SCOPES)
    assert pushed.as_dict()["route"] == "/v2/{id}?do=push"
    read = await explanation(kit, made, "GET", "/v2/7?do=pull")
    assert read.judged.reason is Reason.ALLOWED
    assert "forwarded without /v2" in read.findings.steps()[0].text


async def test_a_decision_that_depended_on_the_query_says_that_the_log_has_none(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci", scopes=["things:read"])
    await happened(kit, made, path="/v2/7", target_name="/v2/{id}?do=push")
    found = await decided(kit)
    assert found.differences == ()
    assert found.notes == (_NO_QUERY,)


NOTES: tuple[tuple[dict[str, str], str], ...] = (
    ({"reason": "token_wrong_secret"}, "the value presented was not that of the token"),
    ({"reason": "credential_ambiguous"}, "how the request was received or forwarded"),
    ({"reason": "upstream_timeout", "outcome": "failed"}, "how the request was received or forwarded"),
    ({"path": "/v1/things/" + "x" * 501}, "cut or redacted"),
    ({"path": "/v1/acme_pat_aaaaaaaaaaaa/7"}, "cut or redacted"),
)


async def test_a_decision_that_cannot_be_compared_says_so(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci")
    for number, (changes, note) in enumerate(NOTES):
        await happened(kit, made, f"{number}" * 24, **changes)
        (only,) = (await decided(kit, f"{number}" * 24)).notes
        assert note in only


async def test_a_request_that_could_not_be_parsed_has_no_explanation_now(kit: Kit) -> None:
    await happened(kit, await kit.mint(ANN, "ci"), path="", reason="host_invalid")
    found = await decided(kit)
    assert (found.now, found.differences, found.since, len(found.notes)) == (None, (), (), 1)


async def test_a_request_without_a_token_is_explained_as_such(kit: Kit) -> None:
    await happened(kit, None, reason="no_credential")
    found = await decided(kit)
    assert found.now is not None
    assert (found.now.judged.reason, found.differences) == (Reason.NO_CREDENTIAL, ())
    assert found.now.challenge == ('Bearer realm="acme"',)
    assert found.now.as_dict()["token"] is None


async def test_a_decision_about_a_deleted_token_is_still_shown(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci")
    await happened(kit, made)
    await kit.tokens.delete(ADMIN, made.view.id)
    found = await decided(kit)
    assert (found.now, found.notes) == (None, ("the token has been deleted",))
    assert found.as_dict()["now"] is None


async def test_an_unknown_decision_says_where_else_to_look(kit: Kit) -> None:
    await happened(kit, await kit.mint(ANN, "ci"))
    for decision in ("", "e" * 24, "nonsense", "%"):
        with pytest.raises(NotFound, match=r"audit\.requests.*log"):
            await explaining(kit).decision(ADMIN, decision)


async def test_a_decision_is_shown_to_callers_who_see_its_token_or_read_its_log(kit: Kit) -> None:
    mine, others, admins = await kit.mint(ANN, "mine"), await kit.mint(BOB, "bob's"), await kit.mint(BOB, "admin's")
    narrow = await kit.mint(ANN, "narrow", scopes=["things:read"])
    await kit.roles.set(ADMIN, "reader", ["patgate.audit:list"])
    await kit.users.add(ADMIN, "reader@example.org", "reader")
    reader = await kit.mint("reader@example.org", "r")
    await happened(kit, mine, "a" * 24)
    await happened(kit, others, "b" * 24)
    explain = explaining(kit)

    assert (await explain.decision(kit.acting(mine), "a" * 24)).now is not None
    assert (await explain.decision(kit.acting(admins), "a" * 24)).now is not None
    read = await explain.decision(kit.acting(reader), "a" * 24)
    assert (read.now, read.notes) == (None, ("you may not see the token",))
    for actor, decision in ((mine, "b" * 24), (narrow, "a" * 24)):
        with pytest.raises(NotFound) as caught:
            await explain.decision(kit.acting(actor), decision)
        assert str(caught.value) == NO_DECISION


async def test_later_changes_are_shown_as_far_as_the_caller_may_read_them(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci", scopes=["things:read"])
    owner = await kit.mint(ANN, "owner")
    await happened(kit, made)
    kit.clock.now += 1
    await kit.roles.set(ADMIN, "editor", ["things:read"])
    await kit.tokens.revoke(ADMIN, made.view.id)
    actions = [change.action for change in (await decided(kit)).since]
    assert actions == ["account.role.set", "account.pat.revoke"]
    seen = await explaining(kit).decision(kit.acting(owner), "d" * 24)
    assert [change.action for change in seen.since] == ["account.pat.revoke"]
