"""The access log: a line describes one request, shows no secret, cannot be forged, and is bounded."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.kinds import Kind
from proxy.core.model import Access
from proxy.core.reasons import Reason
from proxy.core.request.target import PathAllowance
from proxy.core.routes import Match
from proxy.core.token import Minted
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.cache import CacheEntry
from proxy.gateway.phases.record import ExchangeRecorder
from proxy.gateway.telemetry.access_log import BATCH, LINES_PER_SWEEP, PATH_LIMIT, WAITING_BYTES, WAITING_LINES
from proxy.observe.logs import get_logger, redact
from proxy.settings.model import Log
from tests.unit.gateway.kit import (
    HOST,
    TOKENS,
    Gateway,
    answering,
    get,
    make_grant,
    make_route,
    response,
    serving,
    until,
)

ROUTE = make_route("/v1/{entity}/{id}", Access.TOKEN)
SECRETS = ["/v1/things/{}", "/v1/%2f{}%0d%0a", "/a_b/%252f{}", "/x;y={}", "//{}\x1b[31m", "/Authorization:{}"]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Journal:
    """A recorder's access log and the lines that it wrote."""

    def __init__(
        self, access: Literal["off", "refusals", "all"], line_format: Literal["json", "combined"] = "json"
    ) -> None:
        self.written: list[bytes] = []
        self.recorder = ExchangeRecorder(
            [ROUTE],
            get_logger("test"),
            prefix_of=lambda x: None,
            settings=Log(access=access, access_format=line_format),
            process="gateway-3",
            write=self.written.append,
        )

    def lines(self) -> Sequence[str]:
        self.recorder.flush()
        text = b"".join(self.written).decode("ascii")
        self.written.clear()
        assert not text or text.endswith("\n")
        lines = text.split("\n")[:-1]
        assert all(line.isprintable() for line in lines)
        return lines

    def one(self) -> dict[str, Any]:
        (line,) = self.lines()
        record: dict[str, Any] = json.loads(line)
        return record


async def gateway_of(minted: Minted | None = None) -> tuple[Gateway, Exchange]:
    """An exchange as the phases leave it when a request was allowed and answered."""
    gateway = Gateway(1)
    client = gateway.listener.connection("192.0.2.7")
    x = Exchange(client, 1_000_000_000, b"0123456789abcdef00000001")
    x.method, x.path, x.query, x.status = b"GET", b"/v1/things/7", b"?q=1", 200
    x.match = Match(ROUTE, "things", "7", "read", None)
    x.entry = None if minted is None else CacheEntry(make_grant(minted), b"")
    x.upstream = gateway.pipeline.upstreams.pool("app")
    x.server = x.upstream.servers[0]
    x.answered, x.bytes_in, x.bytes_out = 1_002_000_000, 5, 99
    return gateway, x


async def test_an_allowed_request_has_one_line_with_every_field() -> None:
    minted = TOKENS.mint(Kind.PAT)
    journal = Journal("all")
    _, x = await gateway_of(minted)
    journal.recorder.record(x, 1_003_500_000)
    line = journal.one()
    assert TIME.fullmatch(line.pop("time"))
    assert line.pop("pid") > 0
    assert line == {
        "level": "info", "event": "request", "process": "gateway-3", "decision": "0123456789abcdef00000001",
        "outcome": "allowed", "reason": "allowed", "status": 200, "method": "GET", "path": "/v1/things/7",
        "route": "/v1/{entity}/{id}", "operation": "read", "token": minted.prefix, "peer": "192.0.2.7",
        "bytes_in": 5, "bytes_out": 99, "seconds": 0.0035, "upstream": f"http://{HOST}:1", "upstream_seconds": 0.002,
    }  # fmt: skip


async def test_batched_and_single_lines_have_the_same_fields() -> None:
    journal = Journal("all")
    _, x = await gateway_of(TOKENS.mint(Kind.PAT))
    journal.recorder.record(x, 1_003_500_000)
    fast = journal.one()
    x.reported = Reason.ROLE_DENIES
    journal.recorder.record(x, 1_003_500_000)
    slow = journal.one()
    assert (slow.pop("outcome"), slow.pop("reason")) == ("reported", "role_denies")
    assert list(slow) == [name for name in fast if name not in ("outcome", "reason")]
    assert {name: fast[name] for name in slow if name != "time"} == {k: v for k, v in slow.items() if k != "time"}


async def test_what_a_request_lacks_is_null() -> None:
    journal = Journal("all")
    x = Exchange(None, 0, b"0123456789abcdef00000001")
    x.reason, x.status = Reason.REQUEST_MALFORMED, 400
    journal.recorder.record(x, 10)
    line = journal.one()
    assert [line[k] for k in ("route", "operation", "token", "upstream", "upstream_seconds")] == ["-", *[None] * 4]
    assert (line["method"], line["path"], line["peer"]) == ("", "", "")


async def test_the_line_of_a_path_that_is_not_canonical_names_its_form() -> None:
    routes = [
        make_route("/open/**", Access.PUBLIC, index=0, allow=int(PathAllowance.SEMICOLON)),
        make_route("/v1/{entity}/{id}", Access.TOKEN, index=1),
    ]
    forms = {
        "/open/a;b%2Fc": "encoded_slash",
        "/open/a;b/../c": "dot_segment",
        "/nowhere;x": "semicolon",
        "/open/%zz<": "bad_escape",
        "http://other/open/": "not_a_path",
    }
    async with serving(answering(response()), routes=routes) as (gateway, _):
        for target in forms:
            client = await gateway.client()
            assert (await client.ask(get(target))).reason == "target_not_canonical"
        client = await gateway.client()
        login = f"Authorization: Bearer {gateway.admit().token}"
        second = await client.ask(get("/v1/things/1", login, "Destination: /v1/things/a%2F..", method="MOVE"))
        assert second.status in (400, 403)
        second = await client.ask(get("/v1/things/1", login, "Destination: /v1/things/a%2Fb", method="PUT"))
        assert second.reason == "target_not_canonical"
        assert (await client.ask(get("/shut"))).reason == "no_route"
        await until(lambda: len(gateway.access) >= len(forms) + 3)
    found = [(line["reason"], line.get("form")) for line in gateway.access]
    assert found[: len(forms)] == [("target_not_canonical", form) for form in forms.values()]
    assert found[-2:] == [("target_not_canonical", "encoded_slash"), ("no_route", None)]


async def test_the_combined_format_is_that_of_web_servers() -> None:
    minted = TOKENS.mint(Kind.PAT)
    journal = Journal("all", "combined")
    _, x = await gateway_of(minted)
    journal.recorder.record(x, 1_003_500_000)
    (first,) = journal.lines()
    x.entry = None
    x.method, x.path = b'G"T', b'/a"b\\c\x7f\xff'
    journal.recorder.record(x, 1_003_500_000)
    bad = Exchange(None, 0, b"0123456789abcdef00000002")
    bad.reason, bad.status = Reason.REQUEST_MALFORMED, 400
    journal.recorder.record(bad, 10)
    second, third = journal.lines()
    time = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000\]"
    assert re.fullmatch(rf'192\.0\.2\.7 - {minted.prefix} {time} "GET /v1/things/7 HTTP/1\.1" 200 99 "-" "-"', first)
    assert re.fullmatch(
        rf'192\.0\.2\.7 - - {time} "G\\x22T /a\\x22b\\x5Cc\\x7F\\xC3\\xBF HTTP/1\.1" 200 99 "-" "-"', second
    )
    assert re.fullmatch(rf'- - - {time} "-" 400 0 "-" "-"', third)


@pytest.mark.parametrize("line_format", ["json", "combined"])
@pytest.mark.parametrize("path", SECRETS)
@pytest.mark.parametrize("passed", [True, False])
async def test_no_line_has_a_secret_a_query_or_a_control_character(
    line_format: Literal["json", "combined"], path: str, passed: bool
) -> None:
    minted = TOKENS.mint(Kind.PAT)
    secret = minted.token.removeprefix(minted.prefix + "_")
    journal = Journal("all", line_format)
    _, x = await gateway_of(minted)
    x.query = b"?q=" + minted.token.encode() + b"&marker"
    x.reason = None if passed else Reason.ROLE_DENIES
    lines: list[str] = []
    for token in (minted.token, minted.token.replace("_", "%5F"), minted.token.replace("_", "%255f")):
        for method in (b"GET", minted.token.encode()):
            x.method, x.path = method, path.format(token).encode("latin-1")
            journal.recorder.record(x, 1_003_500_000)
            lines += journal.lines()
    assert len(lines) == 6
    assert not any(secret in line or secret[:8] in line or "marker" in line for line in lines)
    assert all(minted.prefix in line for line in lines)


@given(st.binary(max_size=40).map(lambda path: b"/" + path))
def test_the_redactor_would_not_change_a_path_that_skips_it(path: bytes) -> None:
    journal = Journal("all")
    x = Exchange(None, 0, b"0123456789abcdef00000001")
    x.method, x.path, x.reason, x.status = b"GET", path, Reason.NO_ROUTE, 403
    journal.recorder.record(x, 10)
    assert journal.one()["path"] == redact(path.decode("latin-1"))


async def test_a_long_path_is_cut_before_it_is_redacted() -> None:
    journal = Journal("all")
    _, x = await gateway_of(TOKENS.mint(Kind.PAT))
    token = TOKENS.mint(Kind.PAT)
    x.path = b"/" + b"a" * (PATH_LIMIT - len(token.prefix) - 6) + token.token.encode()
    journal.recorder.record(x, 1_003_500_000)
    path = journal.one()["path"]
    assert path.endswith(token.prefix)
    assert len(path) <= PATH_LIMIT


@pytest.mark.parametrize(("access", "count"), [("off", 0), ("refusals", 1), ("all", 2)])
async def test_the_setting_selects_which_requests_have_a_line(
    access: Literal["off", "refusals", "all"], count: int
) -> None:
    async with serving(answering(response()), access=access) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).status == 200
        assert (await client.ask(get("/shut/a"))).status == 403
        gateway.recorder.flush()
        assert [line["status"] for line in gateway.access] == [200, 403][2 - count :]


async def test_a_line_names_the_server_that_answered_and_the_time_of_its_answer() -> None:
    async with serving(answering(response(b"x" * 10)), access="all") as (gateway, backend):
        client = await gateway.client()
        minted = gateway.admit()
        head = get("/v1/things/7", f"Authorization: Bearer {minted.token}", "Content-Length: 3", method="PUT")
        begun = time.monotonic()
        answer = await client.ask(head + b"abc")
        took = time.monotonic() - begun
        gateway.recorder.flush()
        (line,) = gateway.access
        assert line["upstream"] == f"http://{HOST}:{backend.port}"
        assert 0 < line["upstream_seconds"] <= line["seconds"] <= took
        assert (line["bytes_in"], line["bytes_out"]) == (3, len(answer.head) + 10)
        assert (line["token"], line["operation"], line["peer"]) == (minted.prefix, "update", HOST)
        assert line["decision"].encode() in backend.connections[0].received


async def test_a_failure_names_the_server_that_was_tried_last() -> None:
    async with serving(answering(response()), access="all") as (gateway, backend):
        port = backend.port
        await backend.close()
        client = await gateway.client()
        assert (await client.ask(get("/open/a"))).status == 502
        gateway.recorder.flush()
        (line,) = gateway.access
        assert (line["outcome"], line["reason"], line["upstream"]) == (
            "failed",
            "upstream_refused",
            f"http://{HOST}:{port}",
        )
        assert line["upstream_seconds"] is None


async def test_lines_are_in_the_order_in_which_requests_ended() -> None:
    journal = Journal("all")
    _, x = await gateway_of(TOKENS.mint(Kind.PAT))
    for number in range(3 * BATCH + 5):
        # Batched lines are formatted later than single ones; it is the same exchange here, so only its time differs.
        x.reason = Reason.UPSTREAM_RESET if number % 10 == 3 else None
        journal.recorder.record(x, x.started + number)
    seconds = [round(json.loads(line)["seconds"] * 1e9) for line in journal.lines()]
    assert seconds == list(range(3 * BATCH + 5))


async def test_refusals_are_bounded_also_where_all_requests_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal("all")
    _, x = await gateway_of(TOKENS.mint(Kind.PAT))
    refused = Exchange(None, 0, b"0123456789abcdef00000001")
    refused.reason, refused.status = Reason.NO_ROUTE, 403
    with caplog.at_level(logging.INFO, logger="patgate"):
        for _ in range(2 * LINES_PER_SWEEP):
            journal.recorder.record(refused, 10)
            journal.recorder.record(x, 1_003_500_000)
        outcomes = [json.loads(line)["outcome"] for line in journal.lines()]
    assert (outcomes.count("refused"), outcomes.count("allowed")) == (LINES_PER_SWEEP, 2 * LINES_PER_SWEEP)
    assert [record.patgate_fields["count"] for record in caplog.records] == [LINES_PER_SWEEP]  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", [b"/short", b"/" + b"a" * (PATH_LIMIT - 1)])
async def test_waiting_lines_are_bounded_and_the_rest_is_counted(path: bytes, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal("all")
    _, x = await gateway_of(TOKENS.mint(Kind.PAT))
    x.path = path
    sent = WAITING_LINES + 1000
    with caplog.at_level(logging.INFO, logger="patgate"):
        for _ in range(sent):
            journal.recorder.record(x, 1_003_500_000)
        lines = journal.lines()
    assert sum(map(len, lines)) < WAITING_BYTES + BATCH * 2000
    assert WAITING_LINES / 3 < len(lines) <= WAITING_LINES
    (record,) = caplog.records
    assert len(lines) + record.patgate_fields["count"] == sent  # type: ignore[attr-defined]
    journal.recorder.record(x, 1_003_500_000)
    assert len(journal.lines()) == 1
