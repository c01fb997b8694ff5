"""Refusals: the response to the client, the metrics and the log."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest

from proxy.core.challenge import Challenges
from proxy.core.credential_places import BASIC, CredentialPlaces
from proxy.core.model import Access, RefusalFormat
from proxy.core.reasons import TABLE, Reason
from proxy.core.routes import Match
from proxy.gateway.exchange import Exchange
from proxy.gateway.phases.respond import Responder
from proxy.gateway.telemetry.access_log import LINES_PER_SWEEP
from proxy.observe.metrics import CACHE_HITS, REQUEST_SECONDS, REQUESTS
from tests.unit.gateway import kit
from tests.unit.gateway.kit import CACHE_KEY, Gateway, answering, get, make_route, response, serving, until


def exchange(*, keep_alive: bool = True, version: int = 1, head_only: bool = False) -> Exchange:
    x = Exchange(None, 0, b"0123456789abcdef00000001")
    x.keep_alive, x.version, x.head_only = keep_alive, version, head_only
    return x


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.ALLOWED])
def test_every_reason_has_a_complete_response(reason: Reason) -> None:
    data = kit.responder().refusal(exchange(), reason)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    entry = TABLE[reason]
    assert lines[0].startswith(b"HTTP/1.1 %d " % entry.status)
    assert len(lines[0].split(b" ", 2)[2]) > 3
    assert b"Content-Type: application/problem+json" in lines
    assert b"Cache-Control: no-store" in lines
    assert b"Content-Length: %d" % len(body) in lines
    document = json.loads(body)
    assert set(document) == {"type", "title", "status", "detail", "reason", "decision"}
    assert document["status"] == entry.status
    assert document["decision"] == "0123456789abcdef00000001"
    assert (b"Retry-After: 1" in lines) == (entry.status == 503)
    challenges = [line for line in lines if line.startswith(b"WWW-Authenticate: ")]
    assert bool(challenges) == (entry.status in (400, 401) or reason in (Reason.ROLE_DENIES, Reason.SCOPE_DENIES))


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.ALLOWED])
def test_every_refusal_of_gits_first_request_is_one_line_of_text(reason: Reason) -> None:
    """Git shows a person only bodies of the type text/plain."""
    x = exchange()
    x.path, x.query = b"/demo.git/info/refs", b"?service=git-receive-pack"
    x.match = Match(make_route("/{id}/info/refs", Access.TOKEN, entity="repos"), "repos", "demo.git", "update", None)
    head, _, body = kit.responder().refusal(x, reason).partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: text/plain; charset=utf-8\r\n" in head
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    entry = TABLE[reason]
    needed = " It needs repos:update." if reason in (Reason.ROLE_DENIES, Reason.SCOPE_DENIES) else ""
    assert body.decode() == f"{entry.detail}{needed} (reason: {entry.public}, decision: 0123456789abcdef00000001)\n"


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (b"/demo.git/info/refs", b""),
        (b"/demo.git/info/refs", b"?x=1&service=git-upload-pack"),
        (b"/demo.git/info/refs", b"?service=other"),
        (b"/demo.git/info/lfs", b"?service=git-upload-pack"),
    ],
)
def test_other_requests_get_a_problem_document(path: bytes, query: bytes) -> None:
    x = exchange()
    x.path, x.query = path, query
    answer = kit.responder().refusal(x, Reason.ROLE_DENIES)
    assert b"\r\nContent-Type: application/problem+json\r\n" in answer


def routed(refusals: RefusalFormat | None, *, entity: str = "images") -> Exchange:
    """An exchange on a route with this format, which needs the permission to push."""
    x = exchange()
    x.path = b"/v2/demo/manifests/1"
    route = make_route("/v2/{id}/manifests/{reference}", Access.TOKEN, entity=entity, refusals=refusals)
    x.match = Match(route, entity, "demo", "push", None)
    return x


def words(reason: Reason, scope: str = "images:push") -> str:
    entry = TABLE[reason]
    needed = f" It needs {scope}." if reason in (Reason.ROLE_DENIES, Reason.SCOPE_DENIES) and scope else ""
    return f"{entry.detail}{needed} (reason: {entry.public}, decision: 0123456789abcdef00000001)"


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.ALLOWED])
def test_a_route_with_text_refuses_in_one_line_for_every_reason(reason: Reason) -> None:
    head, _, body = kit.responder().refusal(routed(RefusalFormat.TEXT), reason).partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: text/plain; charset=utf-8\r\n" in head
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert body.decode() == words(reason) + "\n"


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.ALLOWED])
def test_a_route_with_json_has_the_members_that_npm_registries_and_lfs_show_for_every_reason(reason: Reason) -> None:
    """``error`` is for npm, ``message`` for Git LFS, ``errors`` for clients of container registries and cargo."""
    head, _, body = kit.responder().refusal(routed(RefusalFormat.JSON), reason).partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: application/json\r\n" in head
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    document = json.loads(body)
    entry, shown = TABLE[reason], words(reason)
    assert document.pop("error") == document.pop("message") == shown
    codes = {400: "UNSUPPORTED", 401: "UNAUTHORIZED", 403: "DENIED", 405: "UNSUPPORTED", 503: "UNAVAILABLE"}
    code = codes.get(entry.status, "UNKNOWN")
    assert document.pop("errors") == [{"code": code, "message": shown, "detail": shown}]
    problem = kit.responder().refusal(routed(RefusalFormat.PROBLEM), reason)
    assert document == json.loads(problem.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("everywhere", RefusalFormat)
def test_the_format_of_a_route_replaces_that_of_the_gateway(everywhere: RefusalFormat) -> None:
    types = {
        RefusalFormat.PROBLEM: b"application/problem+json",
        RefusalFormat.TEXT: b"text/plain; charset=utf-8",
        RefusalFormat.JSON: b"application/json",
    }
    responder = kit.responder(refusals=everywhere)
    for own in RefusalFormat:
        assert b"\r\nContent-Type: %s\r\n" % types[own] in responder.refusal(routed(own), Reason.ROLE_DENIES)
    for x in (routed(None), exchange()):
        assert b"\r\nContent-Type: %s\r\n" % types[everywhere] in responder.refusal(x, Reason.NO_ROUTE)


@pytest.mark.parametrize("refusals", RefusalFormat)
def test_gits_first_request_gets_text_on_every_route(refusals: RefusalFormat) -> None:
    x = routed(refusals)
    x.path, x.query = b"/demo.git/info/refs", b"?service=git-upload-pack"
    answer = kit.responder(refusals=refusals).refusal(x, Reason.SCOPE_DENIES)
    assert answer.endswith(words(Reason.SCOPE_DENIES).encode() + b"\n")


@pytest.mark.parametrize("refusals", RefusalFormat)
def test_a_refusal_of_head_has_the_length_of_its_format_and_no_body(refusals: RefusalFormat) -> None:
    full = kit.responder().refusal(routed(refusals), Reason.ROLE_DENIES)
    x = routed(refusals)
    x.head_only = True
    assert kit.responder().refusal(x, Reason.ROLE_DENIES) == full[: full.index(b"\r\n\r\n") + 4]


@pytest.mark.parametrize("refusals", [RefusalFormat.TEXT, RefusalFormat.JSON])
def test_the_words_name_the_missing_permission_where_no_challenge_does(refusals: RefusalFormat) -> None:
    responder = Responder(challenges=Challenges(realm="acme", places=CredentialPlaces([BASIC])))
    answer = responder.refusal(routed(refusals), Reason.ROLE_DENIES)
    assert b"WWW-Authenticate" not in answer
    assert words(Reason.ROLE_DENIES).encode() in answer


@pytest.mark.parametrize("refusals", RefusalFormat)
def test_no_format_repeats_an_entity_that_is_not_plain(refusals: RefusalFormat) -> None:
    answer = kit.responder().refusal(routed(refusals, entity='evil"\\'), Reason.ROLE_DENIES)
    assert b"evil" not in answer
    assert refusals is RefusalFormat.PROBLEM or words(Reason.ROLE_DENIES, "").encode() in answer


@pytest.mark.parametrize("refusals", RefusalFormat)
def test_responses_to_refused_tokens_are_alike(refusals: RefusalFormat) -> None:
    own = (Reason.NO_CREDENTIAL, Reason.CREDENTIAL_UNSUPPORTED)
    reasons = [reason for reason in Reason if TABLE[reason].status == 401 and reason not in own]
    answers = {kit.responder().refusal(routed(refusals), reason) for reason in reasons}
    assert len({re.sub(rb"\r\nDate: [^\r]*", b"", answer) for answer in answers}) == 1
    assert len(reasons) >= 8


@pytest.mark.parametrize("basic", [True, False])
def test_basic_is_offered_where_it_is_on(basic: bool) -> None:
    for reason in (Reason.NO_CREDENTIAL, Reason.TOKEN_UNKNOWN):
        data = kit.responder("bearer", *(["basic"] if basic else [])).refusal(exchange(), reason)
        assert data.count(b'WWW-Authenticate: Bearer realm="acme"') == 1
        assert (b'WWW-Authenticate: Basic realm="acme"' in data) is basic


def test_a_response_to_head_has_a_length_and_no_body() -> None:
    responder = kit.responder()
    full = responder.refusal(exchange(), Reason.NO_ROUTE)
    assert responder.refusal(exchange(head_only=True), Reason.NO_ROUTE) == full[: full.index(b"\r\n\r\n") + 4]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"HEAD  HTTP/1.1\r\nHost: g\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nHost: g\r\nno field\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nHost: g\x00\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1 \r\nHost: g\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\n\r\n", 400),
        (b"HEAD /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: g\r\n\r\n", 414),
        (b"HEAD / HTTP/1.1\r\nHost: g\r\nA: " + b"a" * 40000 + b"\r\n\r\n", 431),
        (b"HEAD /unknown HTTP/1.1\r\nHost: g\r\n\r\n", 403),
    ],
)
async def test_a_refusal_of_head_has_no_body_whatever_else_is_wrong(head: bytes, status: int) -> None:
    async with serving(answering(response())) as (gateway, _):
        for cut in (len(head), 5, 12):
            client = await gateway.client()
            client.send(head[:cut])
            if head[cut:]:
                await until(lambda: any(each.buffer for each in gateway.listener.connections))
                client.send(head[cut:])
            answer = await client.answer("HEAD")
            assert answer.status == status
            assert answer.closes == (status != 403)
            if answer.closes:
                assert await client.rest() == b""
        await until(lambda: len(gateway.access) == 3)
        assert {line["method"] for line in gateway.access} == {"HEAD"}


def test_the_response_says_whether_the_connection_closes() -> None:
    responder = kit.responder()
    assert b"\r\nConnection: close\r\n" in responder.refusal(exchange(keep_alive=False), Reason.NO_ROUTE)
    assert b"\r\nConnection: keep-alive\r\n" in responder.refusal(exchange(version=0), Reason.NO_ROUTE)
    assert b"\r\nConnection:" not in responder.refusal(exchange(), Reason.NO_ROUTE)


async def test_the_challenge_names_the_missing_scope_and_nothing_from_the_client() -> None:
    async with serving(answering(response())) as (gateway, _):
        client = await gateway.client()
        token = gateway.admit(scopes=["things:read"]).token
        answer = await client.ask(get("/v1/things/7", f"Authorization: Bearer {token}", method="PATCH"))
        assert answer.status == 403
        assert answer.all(b"www-authenticate") == [
            b'Bearer realm="acme", error="insufficient_scope", scope="things:update"'
        ]
        answer = await client.ask(get("/v1/%22evil%22", f"Authorization: Bearer {token}"))
        assert answer.all(b"www-authenticate") == [b'Bearer realm="acme", error="insufficient_scope"']
        assert b"evil" not in answer.head + answer.body


def requests(gateway: Gateway) -> dict[tuple[str, ...], float]:
    """The request counters, by route, outcome and reason."""
    counted = snapshot(gateway)["counters"][REQUESTS.name]
    return {tuple(labels): value for labels, value in counted if value}


def snapshot(gateway: Gateway) -> dict[str, dict[str, Any]]:
    wire = gateway.recorder.snapshot(
        hits=gateway.authenticator.hits, misses=gateway.authenticator.misses, entries=len(gateway.cache), lag=0
    ).to_wire()
    return json.loads(json.dumps(wire))  # type: ignore[no-any-return]


async def test_every_exchange_is_counted_once_by_route_outcome_and_reason() -> None:
    async with serving(answering(response())) as (gateway, backend):
        client = await gateway.client()
        able, unable = gateway.admit().token, gateway.admit(permissions=()).token
        await client.ask(get("/open/a"))
        await client.ask(get("/open/b"))
        await client.ask(get("/v1/things", f"Authorization: Bearer {able}"))
        await client.ask(get("/v1/things", f"Authorization: Bearer {unable}"))
        await client.ask(get("/report/a", f"Authorization: Bearer {unable}"))
        await client.ask(get("/report/a"))
        await client.ask(get("/v1/things"))
        await client.ask(get("/nowhere"))
        await client.ask(get("/shut/a"))
        backend.refuse()
        for connection in backend.connections:
            connection.reset()
        await until(lambda: not gateway.idle)
        await client.ask(get("/open/c"))
        await client.ask(b"nonsense\r\n\r\n")
        assert requests(gateway) == {
            ("/open/**", "allowed", "allowed"): 2,
            ("/v1/{entity}", "allowed", "allowed"): 1,
            ("/v1/{entity}", "refused", "role_denies"): 1,
            ("/report/{id}", "reported", "role_denies"): 1,
            ("/report/{id}", "reported", "no_credential"): 1,
            ("/v1/{entity}", "refused", "no_credential"): 1,
            ("-", "refused", "no_route"): 1,
            ("/shut/**", "refused", "route_denied"): 1,
            ("/open/**", "failed", "upstream_refused"): 1,
            ("-", "refused", "request_malformed"): 1,
        }
        seconds = snapshot(gateway)["histograms"][REQUEST_SECONDS.name]
        assert sum(sum(counts) for _, counts, _ in seconds) == 11
        assert snapshot(gateway)["counters"][CACHE_HITS.name] == [[[], gateway.authenticator.hits]]


async def test_a_flood_of_refusals_writes_few_lines_and_counts_those_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(answering(response())) as (gateway, _):
        client = await gateway.client()
        with caplog.at_level(logging.INFO, logger="patgate"):
            before = gateway.sweeps
            client.send(get("/nowhere") * 300)
            for _ in range(300):
                assert (await client.answer()).status == 403
            gateway.recorder.flush()
            sweeps = gateway.sweeps - before + 1
            lines = gateway.access
            left_out = [record for record in caplog.records if record.message == "requests not logged"]
            said = sum(record.patgate_fields["count"] for record in left_out)  # type: ignore[attr-defined]
            assert len(lines) + said == 300
            # On a slow machine there are so many sweeps that every line is written.
            assert said > 0 or sweeps > 300 / LINES_PER_SWEEP
            assert len(lines) <= LINES_PER_SWEEP * sweeps


async def test_a_log_line_shows_the_public_prefix_and_never_the_secret() -> None:
    async with serving(answering(response())) as (gateway, _):
        client = await gateway.client()
        minted = gateway.admit(permissions=())
        for query, reason, status in (("a", "role_denies", 403), (minted.token, "token_misplaced", 400)):
            gateway.access.clear()
            await client.ask(get("/v1/things?q=" + query, f"Authorization: Bearer {minted.token}"))
            gateway.recorder.flush()
            (fields,) = gateway.access
            assert fields["token"] == minted.prefix
            assert (fields["reason"], fields["status"], fields["route"]) == (reason, status, "/v1/{entity}")
            assert (fields["operation"], fields["peer"], fields["method"]) == ("list", "127.0.0.1", "GET")
            assert minted.token not in str(fields)
            assert CACHE_KEY.hex() not in str(fields)


async def test_an_exchange_whose_client_disconnected_is_counted_once() -> None:
    async with serving(answering(b"")) as (gateway, backend):
        client = await gateway.client()
        client.send(get("/open/a"))
        await until(lambda: backend.connections and backend.connections[0].head)
        client.reset()
        await until(lambda: not gateway.listener.connections)
        assert sum(requests(gateway).values()) == 1
