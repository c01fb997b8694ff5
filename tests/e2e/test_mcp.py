"""The reference MCP client and server, with a gateway of the documented configuration between them.

Requirements C10 (MCP clients authenticate with a Bearer token), E7 (event streams), F1 and F2 (a revoked token stays
revoked, and open streams and calls are cut within a second), in both generations of the protocol: with sessions, and
since 2026-07-28 without.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from zlib import crc32

import pytest
import yaml

from tests.support.gateway import ROOT, Patgate, Token
from tests.support.pool import Pool
from tests.support.rawhttp import Response
from tests.support.remote import Raised, Remote, running, seconds_until
from tests.support.tap import Tap

USER = "amy@example.org"
CALLER = "cal@example.org"
GENERATIONS = ["legacy", "auto"]
HOST = "mcp.example.org"
AT_ONCE = 1.0
"""Seconds (requirement F2)."""


def documented() -> dict[str, Any]:
    """The configuration of docs/backends.md."""
    section = (ROOT / "docs" / "backends.md").read_text("utf-8").partition("## MCP servers\n")[2]
    found = re.search(r"^```yaml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found is not None
    config = yaml.safe_load(found[1])
    assert isinstance(config, dict)
    return config


server = running("mcp_server")
program = running("mcp_client")


@pytest.fixture(scope="module")
def node(gateways: Pool, server: Remote, program: Remote) -> Iterator[Patgate]:
    """A gateway in front of the MCP server; the clients' program starts at the same time as the server."""
    config = documented()
    with Tap(server.ask("serve"), "MCP") as tap:
        config["upstreams"]["mcp"]["servers"] = [tap.url]
        config["roles"]["visitor"] = ["notes:read"]
        config["workers"] = 1
        with gateways.lend(config) as gateway:
            gateway.add_user(USER, "assistant")
            gateway.add_user(CALLER, "caller")
            yield gateway


@pytest.fixture
def clients(node: Patgate, program: Remote) -> Iterator[Remote]:
    """The clients' program; its clients are closed after each test."""
    yield program
    program.ask("abandon")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name that no other client and no other token has."""
    return re.sub(r"\W+", "-", request.node.name).strip("-")


def start(clients: Remote, node: Patgate, name: str, token: Token | None, mode: str = "legacy") -> Any:
    headers = {"Host": HOST} | (token.bearer if token else {})
    return clients.ask("open", client=name, url=f"{node.base_url}/mcp", headers=headers, mode=mode)


@pytest.mark.parametrize("mode", GENERATIONS)
def test_a_client_lists_tools_calls_them_and_reads_resources(
    mode: str, node: Patgate, server: Remote, clients: Remote, name: str
) -> None:
    """C10: the tools identify the caller by the gateway's headers alone."""
    token = node.token(USER, name=name)
    opened = start(clients, node, name, token, mode)
    assert opened == {"protocol": "2025-11-25" if mode == "legacy" else "2026-07-28", "server": "notes"}
    assert clients.ask("tools", client=name) == ["add", "whoami", "count", "ponder", "learn"]
    assert clients.ask("call", client=name, tool="add", arguments={"a": 2, "b": 3}) == 5
    assert clients.ask("read", client=name, uri="note://first") == "buy milk"
    who = clients.ask("call", client=name, tool="whoami", arguments={})
    assert (who["x-auth-email"], who["x-auth-token"], who["x-auth-token-name"]) == (USER, token.prefix, name)
    assert "authorization" not in who
    for request in server.told("request", token=name):
        assert token.value not in str(request)
    assert {answer["status"] for answer in clients.told("answered", client=name)} <= {200, 202}


@pytest.mark.parametrize("mode", GENERATIONS)
def test_a_tool_that_takes_long_reports_its_progress(mode: str, node: Patgate, clients: Remote, name: str) -> None:
    """E7: each step arrives as it happens on the event stream that is the response to the call."""
    start(clients, node, name, node.token(USER, name=name), mode)
    assert clients.ask("call", client=name, tool="count", arguments={"to": 50}) == 50
    clients.hears("progress", client=name, progress=50)
    steps = [(told["progress"], told["total"], told["message"]) for told in clients.told("progress", client=name)]
    assert steps == [(step, 50, f"step {step}") for step in range(1, 51)]


def test_the_servers_own_words_come_over_the_stream_of_the_session(
    node: Patgate, server: Remote, clients: Remote, name: str
) -> None:
    """E7: GET is ``subscribe``; DELETE at the end ends the session and its stream."""
    start(clients, node, name, node.token(USER, name=name))
    server.hears("request", token=name, method="GET", session=True)
    clients.hears("answered", client=name, method="GET", status=200)
    assert clients.ask("call", client=name, tool="learn", arguments={}) == "learnt"
    clients.hears("message", client=name, method="notifications/tools/list_changed")
    clients.ask("close", client=name)
    server.hears("ended", token=name, method="DELETE", status=200)
    server.hears("ended", token=name, method="GET", status=200)


def test_a_subscription_hears_what_changes(node: Patgate, clients: Remote, name: str) -> None:
    """E7: since 2026-07-28 a subscription is the response to a POST, and so ``call``."""
    start(clients, node, name, node.token(USER, name=name), "auto")
    clients.ask("listen", client=name)
    assert clients.ask("call", client=name, tool="learn", arguments={}) == "learnt"
    clients.hears("change", client=name, kind="ToolsListChanged")


def test_a_session_of_another_user_arrives_with_the_identity_of_the_caller(
    node: Patgate, server: Remote, name: str
) -> None:
    """The page says so: patgate does not judge the session that a header names, and the server can."""

    def post(token: Token, message: dict[str, Any], session: dict[str, str]) -> Response:
        accepted = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        body = json.dumps({"jsonrpc": "2.0", "id": 1} | message).encode()
        with node.connect() as connection:
            return connection.request("POST", "/mcp", headers=token.bearer | accepted | session, body=body, host=HOST)

    about = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": name, "version": "1"}}
    begun = post(node.token(USER, name=name), {"method": "initialize", "params": about}, {})
    session = begun.get("Mcp-Session-Id")
    assert begun.status == 200
    assert session is not None
    post(node.token(CALLER, name=f"{name}-other"), {"method": "tools/list"}, {"Mcp-Session-Id": session})
    request = server.hears("request", token=f"{name}-other", session=True)
    assert request["headers"]["x-auth-email"] == CALLER


@pytest.mark.parametrize("mode", GENERATIONS)
def test_without_a_token_the_client_is_told_how_to_come_back(
    mode: str, node: Patgate, server: Remote, clients: Remote, name: str
) -> None:
    """C10: the client gets 401 and a Bearer challenge, which is where MCP clients look (RFC 6750 section 3)."""
    before = len(server.told("request"))
    with pytest.raises(Raised):
        start(clients, node, name, None, mode)
    answers = clients.told("answered", client=name)
    assert {answer["status"] for answer in answers} == {401}
    assert all('Bearer realm="acme"' in answer["challenge"] for answer in answers)
    # Requests of clients of earlier tests may still arrive meanwhile.
    assert all(request["headers"].get("x-auth-user") for request in server.told("request")[before:])


@pytest.mark.parametrize("mode", GENERATIONS)
def test_a_scope_that_lacks_the_operation_shows_the_client_which_one(
    mode: str, node: Patgate, server: Remote, clients: Remote, name: str
) -> None:
    """C10, E1: the client gets 403, ``insufficient_scope``, and the scope that it needs."""
    before = len(server.told("request"))
    with pytest.raises(Raised):
        start(clients, node, name, node.token(USER, name=name, scopes=["mcp:subscribe"]), mode)
    answers = clients.told("answered", client=name)
    assert {answer["status"] for answer in answers} == {403}
    assert all('error="insufficient_scope", scope="mcp:call"' in answer["challenge"] for answer in answers)
    assert all(request["headers"].get("x-auth-token-name") != name for request in server.told("request")[before:])


@pytest.mark.parametrize("narrow", ["by the role", "by the scope"])
def test_who_may_only_call_does_so_without_the_stream(
    narrow: str, node: Patgate, server: Remote, clients: Remote, name: str
) -> None:
    """E7: ``call``, ``subscribe`` and ``delete`` are three operations of one path."""
    by_role = narrow == "by the role"
    token = node.token(CALLER, name=name) if by_role else node.token(USER, name=name, scopes=["mcp:call"])
    start(clients, node, name, token)
    refused = clients.hears("answered", client=name, method="GET", status=403)
    assert 'error="insufficient_scope", scope="mcp:subscribe"' in refused["challenge"]
    assert clients.ask("call", client=name, tool="count", arguments={"to": 3}) == 3
    clients.hears("progress", client=name, progress=3)
    assert len(clients.told("progress", client=name)) == 3
    clients.ask("close", client=name)
    assert clients.told("answered", client=name, method="DELETE", status=403)
    assert {request["method"] for request in server.told("request", token=name)} == {"POST"}


def open_stream(clients: Remote, node: Patgate, name: str, token: Token, mode: str) -> Callable[..., Any]:
    """Open a stream or subscription and begin a call; return the function that waits for the end of the call."""
    start(clients, node, name, token, mode)
    if mode == "auto":
        clients.ask("listen", client=name)
    else:
        clients.hears("answered", client=name, method="GET", status=200)
    call = clients.begin("call", client=name, tool="ponder", arguments={})
    clients.hears("progress", client=name, tool="ponder")
    return call


def stream_ended(clients: Remote, name: str, mode: str) -> dict[str, Any]:
    """Wait until the client has noticed the end of its stream."""
    if mode == "auto":
        return clients.hears("lost", client=name, error="SubscriptionLost")
    return clients.hears("said", client=name, text="GET stream error")


@pytest.mark.alone
@pytest.mark.parametrize("how", ["revoked", "suspended", "downgraded", "narrowed"])
@pytest.mark.parametrize("mode", GENERATIONS)
def test_what_a_client_has_open_is_cut_at_once(
    mode: str,
    how: str,
    node: Patgate,
    server: Remote,
    clients: Remote,
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    """E3, F1, F2: its stream or subscription and its call are cut; the next call is refused; others are unaffected."""
    owner, other = node.add_user(f"{crc32(name.encode()):x}@example.org", "assistant"), f"{name}-other"
    token = node.token(owner, name=name, scopes=["mcp:call", "mcp:subscribe", "mcp:delete"])
    open_stream(clients, node, other, node.token(USER, name=other), mode)
    call = open_stream(clients, node, name, token, mode)
    with node.control_socket() as control:
        control.take_away(how, token, owner, role="visitor", scopes=["mcp:call", "mcp:subscribe"])
    answered = time.monotonic()
    with pytest.raises(Raised):
        call()
    for noticed in (clients.hears("failed", client=name, tool="ponder"), stream_ended(clients, name, mode)):
        record_property("seconds until the cut was noticed", seconds_until(noticed, answered))
        assert seconds_until(noticed, answered) < AT_ONCE
    with pytest.raises(Raised):
        clients.ask("call", client=name, tool="add", arguments={"a": 1, "b": 1})
    last = clients.told("answered", client=name, method="POST")[-1]
    assert (last["status"], "insufficient_scope" in last["challenge"]) == (
        (403, True) if how in ("downgraded", "narrowed") else (401, False)
    )
    assert clients.ask("call", client=other, tool="learn", arguments={}) == "learnt"
    if mode == "auto":
        clients.hears("change", client=other)
    else:
        clients.hears("message", client=other, method="notifications/tools/list_changed")
    assert not clients.told("failed", client=other)
    assert not server.told("ended", token=other, method="GET")


@pytest.mark.alone
@pytest.mark.parametrize("how", ["role", "scopes"])
def test_less_than_before_cuts_what_it_lacks_and_nothing_else(
    how: str, node: Patgate, server: Remote, clients: Remote, name: str
) -> None:
    """D2, E3, F2: a client that may still call keeps the call in progress, and loses the stream."""
    owner = node.add_user(f"{crc32(name.encode()):x}@example.org", "assistant")
    token = node.token(owner, name=name, scopes=["mcp:call", "mcp:subscribe"])
    open_stream(clients, node, name, token, "legacy")
    with node.control_socket() as control:
        if how == "role":
            control.set_role(owner, "caller")
        else:
            control.call("DELETE", f"/tokens/{token.id}/scopes?scope=mcp:subscribe")
    answered = time.monotonic()
    assert seconds_until(stream_ended(clients, name, "legacy"), answered) < AT_ONCE
    assert clients.ask("call", client=name, tool="count", arguments={"to": 2}) == 2
    assert not clients.told("failed", client=name)
    server.hears("ended", token=name, method="GET")
