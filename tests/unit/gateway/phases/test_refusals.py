"""Refusals: the response to the client, the metrics and the log."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest

from proxy.core.reasons import TABLE, Reason
from proxy.gateway.exchange import Exchange
from proxy.gateway.telemetry.access_log import LINES_PER_SWEEP
from proxy.observe.metrics import CACHE_HITS, REQUEST_SECONDS, REQUESTS
from tests.unit.gateway import kit
from tests.unit.gateway.kit import CACHE_KEY, Gateway, answering, get, response, serving, until


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


def test_responses_to_refused_tokens_are_alike() -> None:
    own = (Reason.NO_CREDENTIAL, Reason.CREDENTIAL_UNSUPPORTED)
    reasons = [reason for reason in Reason if TABLE[reason].status == 401 and reason not in own]
    answers = {kit.responder().refusal(exchange(), reason) for reason in reasons}
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
