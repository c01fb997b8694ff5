"""Requests and responses: all errors at once, stable lists, and no way to find out another caller's ids."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest

from proxy.control.api.operations import OPERATIONS
from tests.unit.control.api_client import minted, ok, person, refused, request
from tests.unit.control.conftest import World

ATTEMPTS = 5
"""How often a list and its count are requested until nothing was added between the two requests."""


@pytest.mark.parametrize(
    ("method", "path", "body", "faults"),
    [
        (
            "POST",
            "/tokens?limit=1&<x>=2",
            {"name": "", "expires": -1, "scopes": ["a:b", "nonsense", "*x:read"], "description": 7, "<b>": 1},
            {
                "limit": "there is no such parameter",
                "query": "there is no such parameter",
                "name": "a name is needed",
                "expires": "more than 0",
                "scopes[1]": "a permission is entity:operation or entity/id:operation; the colon is missing",
                "scopes[2]": "the entity has * beside other characters; use * alone, or write %2A",
                "description": "this must be text",
                "?": "there is no such field",
            },
        ),
        (
            "POST",
            "/users",
            {"email": "nobody", "name": "a\nb"},
            {
                "email": "an email is name@domain, without spaces",
                "role": "this field is required",
                "name": "at most 200 printable characters on one line",
            },
        ),
        (
            "PUT",
            "/orgs/red/policy",
            {"max_lifetime": 1, "tokens_per_user": 0, "require_expiry": "yes", "admin_rights": ["rule"]},
            {
                "max_lifetime": "at least 60",
                "tokens_per_user": "at least 1",
                "require_expiry": "true or false",
                "admin_rights[0]": "one of 'revoke' or 'delete'",
            },
        ),
        ("POST", "/tokens", {"name": "x", "scopes": []}, {"scopes": "at least 1 of them"}),
        (
            "GET",
            "/tokens?limit=x&status=lost&expiring_within=soon&kind=cat",
            None,
            {
                "limit": "a whole number",
                "status": "one of 'active', 'expired' or 'revoked'",
                "expiring_within": "a number of seconds",
                "kind": "one of 'pat' or 'key'",
            },
        ),
        (
            "POST",
            "/tokens",
            {"name": "x", "scopes": ["nonsense"]},
            {"scopes[0]": "a permission is entity:operation or entity/id:operation; the colon is missing"},
        ),
        ("DELETE", "/tokens?keep_current=1", None, {"keep_current": "true or false"}),
    ],
)
async def test_all_errors_are_named_at_once_with_what_is_allowed(
    world: World, method: str, path: str, body: Any, faults: dict[str, str]
) -> None:
    problem = await refused(world, method, path, body)
    assert (problem["status"], problem["reason"]) == (422, "invalid")
    assert {error["field"]: error["problem"] for error in problem["errors"]} == faults


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "a", "name": "b"}',
        b'{"name": "a", "display_name": {"x": 1, "x": 2}}',
        b"[" * 60_000,
        b'{"name": NaN}',
        b'{"name": "\\ud800"}',
        b"\xef\xbb\xbf{}",
    ],
)
async def test_json_that_two_parsers_could_read_differently_is_refused(world: World, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    async with world.socket.post("/api/v1/orgs", data=body, headers=headers) as answer:
        assert answer.status in (400, 422)
    assert (await ok(world, "GET", "/orgs"))["items"] == []


async def test_a_compressed_body_is_refused(world: World) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "identity"}
    async with world.socket.post("/api/v1/orgs", data=b'{"name": "a"}', headers=headers) as answer:
        assert answer.status == 415


async def test_a_body_that_names_another_thing_than_the_path_is_refused_and_nothing_is_created(world: World) -> None:
    for org in ("lab", "other"):
        await person(world, "ada@example.org", "editor", org)
    key = await ok(world, "POST", "/orgs/lab/keys", {"name": "k", "role": "viewer"})
    body = {"name": "ci", "user": "ada@example.org"}
    for named in ("other", "lab", "nowhere", key["org_id"]):
        problem = await refused(world, "POST", "/orgs/lab/tokens", {**body, "org": named})
        assert (problem["status"], [error["field"] for error in problem["errors"]]) == (422, ["org"]), named
    for reach in ("account", "personal"):
        problem = await refused(world, "POST", "/orgs/lab/tokens", {**body, "reach": reach})
        assert problem["status"] == 422, reach
    assert (await ok(world, "GET", "/tokens?kind=pat"))["items"] == []
    assert (await ok(world, "POST", "/orgs/lab/tokens", body))["org"] == "lab"


def test_no_operation_has_a_path_parameter_in_its_body_or_query() -> None:
    """In ``POST /orgs/lab/tokens {"org": "other"}`` one of the two would be ignored."""
    taken = {}
    for row in OPERATIONS:
        named = set(re.findall(r"{(\w+)}", row.path))
        both = named & {*row.body.model_fields, *row.query.model_fields}
        if both:
            taken[row.name] = both
    assert taken == {}


async def test_a_count_covers_only_what_the_caller_may_list(world: World) -> None:
    for org in ("lab", "shop"):
        for number in range(3):
            await person(world, f"{org}{number}@example.org", "admin", org)
            await minted(world, f"{org}{number}@example.org", org=org)
        await ok(world, "POST", f"/orgs/{org}/keys", {"name": "k", "role": "viewer"})
        for number in range(2):
            invited = {"email": f"{org}-guest{number}@example.org", "role": "viewer"}
            await ok(world, "POST", f"/orgs/{org}/invitations", invited)
    team = (await minted(world, "lab0@example.org", org="lab"))["token"]
    paths = ("/tokens", "/tokens?status=active", "/keys", "/orgs", "/users", "/invitations", "/policy/violations")
    of_lab = ("/orgs/lab/tokens", "/orgs/lab/members", "/orgs/lab/keys", "/orgs/lab/invitations", "/audit?org=lab")
    counted: dict[str, list[int]] = {"": [], team: []}
    for token, path in product(counted, (*paths, *of_lab)):
        joint = "&" if "?" in path else "?"
        status, whole, _ = await request(world, "GET", f"{path}{joint}limit=1000", token=token)
        if status != 200:
            assert token and status in (403, 404), path
            continue
        assert "remaining" not in whole, "no count was requested"
        page = await ok(world, "GET", f"{path}{joint}limit=1&count=true", token=token)
        for _ in range(ATTEMPTS):
            if page["remaining"] == len(whole["items"]) - len(page["items"]):
                break
            # The events of these requests are written in batches, sometimes between two of the requests.
            whole = await ok(world, "GET", f"{path}{joint}limit=1000", token=token)
            page = await ok(world, "GET", f"{path}{joint}limit=1&count=true", token=token)
        assert (page["remaining"], page["remaining_exact"]) == (len(whole["items"]) - len(page["items"]), True), path
        counted[token].append(page["remaining"])
    assert sum(map(bool, counted[""])) > 7
    assert sum(map(bool, counted[team])) > 3


async def test_a_list_is_stable_while_things_are_added_and_removed(world: World) -> None:
    """Each item that existed at the first page is listed once, even if items are added or removed meanwhile."""
    await person(world, "ada@example.org", "editor")
    first = [(await minted(world, "ada@example.org"))["id"] for _ in range(6)]
    seen: list[str] = []
    cursor, gone = "", first[1]
    while True:
        page = await ok(world, "GET", f"/tokens?user=ada@example.org&limit=2{cursor}")
        seen += [token["id"] for token in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
        await minted(world, "ada@example.org") if len(seen) < 6 else None
        if gone:
            await ok(world, "DELETE", f"/tokens/{gone}")
            gone = ""
    assert seen[:6] == first
    assert len(seen) == len(set(seen)) == 8


async def test_a_missing_thing_and_another_callers_thing_get_the_same_response(world: World) -> None:
    """For every operation, byte for byte, except for the id of the decision."""
    await person(world, "ada@example.org", "editor", "red")
    await person(world, "bob@example.org", "editor", "blue")
    mine = (await minted(world, "ada@example.org", org="red"))["token"]
    theirs = await minted(world, "bob@example.org", org="blue")
    key = await ok(world, "POST", "/orgs/blue/keys", {"name": "k", "role": "viewer"})
    bob = (await ok(world, "GET", "/users/bob@example.org"))["id"]
    blue = (await ok(world, "GET", "/orgs/blue"))["id"]
    verbs: list[tuple[str, str, object]] = [
        ("GET", "/tokens/{}", None),
        ("PATCH", "/tokens/{}", {"name": "x"}),
        ("DELETE", "/tokens/{}", None),
        ("POST", "/tokens/{}/rotate", None),
        ("POST", "/tokens/{}/revoke", None),
        ("POST", "/tokens/{}/regenerate", None),
        ("GET", "/tokens/{}/scopes", None),
        ("POST", "/tokens/{}/scopes", {"scopes": ["a:b"]}),
        ("PUT", "/tokens/{}/scopes", {"scopes": ["a:b"]}),
        ("DELETE", "/tokens/{}/scopes", None),
        ("GET", "/tokens?parent={}", None),
    ]
    cases = [(verb, theirs["id"], "0123456789ab") for verb in verbs]
    cases += [
        ((method, path.replace("/tokens/", "/keys/"), body), key["id"], "0123456789ab") for method, path, body in verbs
    ]
    cases += [
        ((method, path, body), name, "org_0123456789ab" if name.startswith("org_") else "nothing")
        for method, path, body in [
            ("GET", "/orgs/{}", None),
            ("POST", "/orgs/{}/suspend", None),
            ("GET", "/orgs/{}/members", None),
            ("PUT", "/orgs/{}/members/ada@example.org", {"role": "viewer"}),
            ("DELETE", "/orgs/{}/members/bob@example.org", None),
            ("GET", "/orgs/{}/roles", None),
            ("GET", "/orgs/{}/tokens", None),
            ("POST", "/orgs/{}/tokens", {"name": "x"}),
            ("GET", "/orgs/{}/keys", None),
            ("POST", "/orgs/{}/keys", {"name": "x", "role": "viewer"}),
            ("GET", "/orgs/{}/policy", None),
            ("PUT", "/orgs/{}/policy", {}),
            ("PATCH", "/orgs/{}/policy", {}),
            ("GET", "/orgs/{}/audit", None),
            ("GET", "/tokens?org={}", None),
            ("GET", "/policy?org={}", None),
        ]
        for name in (blue, "blue")
    ]
    cases += [
        (verb, bob, "usr_0123456789ab")
        for verb in [("GET", "/users/{}", None), ("GET", "/tokens?user={}", None), ("POST", "/users/{}/suspend", None)]
    ]
    differing = []
    for (method, path, body), real, missing in cases:
        answers = []
        for name in (real, missing):
            status, problem, answer = await request(world, method, path.format(name), body, token=mine)
            if status >= 400:
                problem.pop("decision")
            head = {n: v for n, v in answer.headers.items() if n.lower() not in ("date", "x-request-id")}
            answers.append((status, problem, head))
        if answers[0] != answers[1]:
            differing.append((method, path, answers))
    assert not differing


async def test_a_secret_is_only_in_the_response_that_creates_it(world: World) -> None:
    await person(world, "root@example.org", "admin")
    token = await minted(world, "root@example.org")
    rotated = await ok(world, "POST", f"/tokens/{token['id']}/rotate")
    secrets = [made["token"].rpartition("_")[2] for made in (token, rotated)]
    for path in ("/tokens", f"/tokens/{token['id']}", "/me", "/audit", "/users", "/keys"):
        async with world.tcp.get(f"/api/v1{path}", headers={"X-API-Key": rotated["token"]}) as answer:
            text = await answer.text()
            assert answer.status == 200
            assert not [secret for secret in secrets if secret in text]
