"""The audit log over the API: filters, paging, following, verifying, and what each caller may see."""

from __future__ import annotations

from tests.unit.control.api_client import minted, ok, person, refused
from tests.unit.control.conftest import World

ADA = "ada@example.org"


async def test_every_filter_is_a_parameter(world: World) -> None:
    user = await person(world, ADA, "editor", "blue")
    token = await minted(world, ADA, org="blue")
    everything = (await ok(world, "GET", "/audit?limit=1000"))["items"]
    (event,) = [event for event in everything if event["action"] == "account.pat.mint"]
    same = [
        f"target={token['id']}",
        f"target={token['prefix']}",
        f"user={ADA}&action=account.pat.",
        f"user={user['id']}&target_kind=token&level=organisation",
        "org=blue&action=account.pat.mint",
        f"actor_kind=system&actor={event['actor_id']}&actor_name={event['actor_name']}&action=account.pat.mint",
        "outcome=done&since=1h&action=account.pat.mint&denied=false&order=oldest",
    ]
    for query in same:
        assert (await ok(world, "GET", f"/audit?{query}"))["items"] == [event], query
    assert (await ok(world, "GET", "/orgs/blue/audit?action=account.pat."))["items"] == [event]
    for query in ("denied=true", "reason=no_route", "address=192.0.2.1", "request=x", "until=1h", "actor_kind=key"):
        assert await ok(world, "GET", f"/audit?{query}") == {"items": [], "next_cursor": None}, query


async def test_the_log_is_paged_and_followed(world: World) -> None:
    await person(world, ADA, "editor")
    everything = (await ok(world, "GET", "/audit?limit=1000"))["items"]
    page = await ok(world, "GET", "/audit?limit=2")
    seen = page["items"]
    while page["next_cursor"] is not None:
        page = await ok(world, "GET", f"/audit?limit=2&cursor={page['next_cursor']}")
        seen = seen + page["items"]
    # A read is an event itself, which is written some time after the answer.
    assert seen[: len(everything)] == everything
    assert {event["action"] for event in seen[len(everything) :]} <= {"api.audit.list"}
    users = "action=account.user."
    page = await ok(world, "GET", f"/audit?after=now&{users}")
    assert (page["items"], page["next_cursor"] is None) == ([], False)
    await person(world, "bob@example.org", "editor")
    problem = await refused(world, "GET", "/audit?after=now&count=true")
    assert [error["field"] for error in problem["errors"]] == ["count"]
    page = await ok(world, "GET", f"/audit?after=now&{users}&cursor={page['next_cursor']}")
    assert [event["target_name"] for event in page["items"]] == ["bob@example.org"]
    last = page["items"][-1]["number"]
    assert [event["number"] for event in (await ok(world, "GET", f"/audit?after={last - 1}&{users}"))["items"]] == [
        last
    ]


async def test_the_log_is_verified_over_the_api(world: World) -> None:
    done = await ok(world, "POST", "/audit/verify", {})
    assert (done["problem"], done["next"]) == (None, None)
    assert (await ok(world, "POST", "/audit/verify", {"head": done["head"], "after": done["head"]}))["events"] == 0
    problem = await refused(world, "POST", "/audit/verify", {"head": "7", "after": "x"})
    assert [error["field"] for error in problem["errors"]] == ["after", "head"]
    assert all("N:HASH" in error["problem"] for error in problem["errors"])


async def test_a_member_sees_only_their_own_log(world: World) -> None:
    await person(world, ADA, "editor", "blue")
    await ok(world, "POST", "/orgs", {"name": "red"})
    token = (await minted(world, ADA, org="blue"))["token"]
    events = (await ok(world, "GET", "/audit", token=token))["items"]
    assert {(event["user"], event["org"]) for event in events} == {(ADA, "blue")}
    assert (await refused(world, "GET", "/orgs/blue/audit", token=token))["status"] == 403
    assert (await refused(world, "POST", "/audit/verify", {}, token=token))["status"] == 403
    answers = [await refused(world, "GET", f"/audit?org={org}", token=token) for org in ("red", "nowhere")]
    answers += [await refused(world, "GET", f"/orgs/{org}/audit", token=token) for org in ("red", "nowhere")]
    assert {(answer["status"], answer["detail"]) for answer in answers} == {
        (404, "there is no organisation with this name or id")
    }


async def test_every_invalid_field_is_named(world: World) -> None:
    query = "actor_kind=x&level=x&outcome=x&address=x&since=x&until=x&after=x&limit=x&order=x&denied=x&surprise=x"
    problem = await refused(world, "GET", f"/audit?{query}")
    fields = {pair.partition("=")[0] for pair in query.split("&")}
    assert {error["field"] for error in problem["errors"]} == fields
    assert not any(error["problem"].startswith("this is not") for error in problem["errors"])
