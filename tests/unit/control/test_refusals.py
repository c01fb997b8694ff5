"""Refusals of the control API and reads of the audit log are recorded in it, with a bounded number of events."""

from __future__ import annotations

import asyncio
import os
import pwd
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from proxy.authority.runtime import Authority
from proxy.authority.sockets import bind_unix
from proxy.control import peer
from proxy.control.app import socket_app
from proxy.control.peer import Peers
from proxy.core import event_quota
from proxy.core.event_quota import REFUSALS, STRANGERS, STRANGERS_BURST
from proxy.core.kinds import Kind
from proxy.core.token import TokenFormat
from proxy.settings.model import Audit, Settings
from tests.support.process import HANGS_SECONDS
from tests.unit.control.api_client import API, minted, ok, person, refused
from tests.unit.control.conftest import World

FORMAT = TokenFormat("acme")
ADA, EVE = "ada@example.org", "eve@example.org"
ME = f"uid:{os.geteuid()}"


async def written(world: World, query: str, count: int, *, seconds: float = HANGS_SECONDS) -> list[Any]:
    """Wait until ``count`` events match, and return them, oldest first."""
    async with asyncio.timeout(seconds):
        while True:
            found = (await ok(world, "GET", f"/audit?limit=1000&{query}"))["items"][::-1]
            if len(found) >= count:
                return list(found)
            await asyncio.sleep(0.02)


async def test_every_kind_of_refusal_is_recorded_with_its_reason_and_caller(world: World) -> None:
    await person(world, ADA, "viewer")
    ada, other = await minted(world, ADA), await minted(world, ADA)
    theirs = await person(world, EVE, "viewer")
    token = ada["token"]
    stranger = FORMAT.mint(Kind.PAT)
    asked: list[tuple[str, str, Any, str]] = [
        ("GET", "/users", None, token),
        ("POST", "/tokens", {"user": ADA, "name": "x", "scopes": ["nonsense"]}, token),
        ("GET", f"/users/{theirs['id']}", None, token),
        ("GET", f"/tokens/{'A' * 12}", None, token),
        ("GET", "/me", None, stranger.token),
        ("GET", "/me", None, other["token"][:-1] + "!"),
        ("PUT", "/roles/viewer", {"permissions": ["*:*"]}, token),
    ]
    decisions = [(await refused(world, *request[:3], token=request[3]))["decision"] for request in asked]
    async with world.tcp.get(f"{API}/me") as answer:
        decisions.append((await answer.json(content_type=None))["decision"])
    async with world.tcp.get("/nowhere", headers={"Host": "evil.example"}) as answer:
        decisions.append((await answer.json(content_type=None))["decision"])
    events = {event["decision_id"]: event for event in await written(world, "outcome=refused", len(decisions))}
    shown = [
        (event["action"], event["reason"], event["details"]["status"], event["actor_name"])
        for event in map(events.__getitem__, decisions)
    ]
    assert shown == [
        ("api.users.list", "forbidden", 403, "test"),
        ("api.tokens.create", "invalid", 422, "test"),
        ("api.users.show", "not_found", 404, "test"),
        ("api.tokens.show", "not_found", 404, "test"),
        ("api.me.show", "token_unknown", 401, None),
        ("api.me.show", "token_unknown", 401, None),
        ("api.roles.set", "forbidden", 403, "test"),
        ("api.me.show", "no_credential", 401, None),
        ("api", "host_invalid", 421, None),
    ]
    first, foreign, unknown = (events[decisions[at]] for at in (0, 2, 4))
    assert (first["actor_kind"], first["actor_id"], first["user"], first["address"]) == (
        "pat",
        ada["id"],
        ADA,
        "127.0.0.1",
    )
    assert first["details"] == {"method": "GET", "path": f"{API}/users", "status": 403}
    assert (foreign["target_kind"], foreign["target_id"]) == ("api", theirs["id"])
    assert (unknown["actor_kind"], unknown["details"]["token"]) == ("system", stranger.prefix)
    assert (await written(world, "denied=true&action=api.", 8))[0]["outcome"] == "refused"


async def test_a_wrong_secret_is_recorded_in_the_log_of_the_claimed_token(world: World) -> None:
    await person(world, ADA, "viewer")
    ada = await minted(world, ADA)
    forged = FORMAT.mint(Kind.PAT, ada["id"]).token
    await refused(world, "GET", "/me", token=forged)
    (event,) = await written(world, "reason=token_wrong_secret", 1)
    assert (event["actor_id"], event["user"]) == (ada["id"], ADA)
    # Its owner sees the event in their own log.
    own = (await ok(world, "GET", "/audit?reason=token_wrong_secret", token=ada["token"]))["items"]
    assert own == [event]


async def test_throttled_callers_are_recorded_and_unknown_callers_leave_a_bounded_number_of_events(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine the quota would be refilled as fast as requests come.
    monkeypatch.setattr(event_quota, "SWEEP_SECONDS", 1e9)
    for _ in range(STRANGERS_BURST + 10):
        await refused(world, "GET", "/me", token=FORMAT.mint(Kind.PAT).token)
    (omitted, *_) = await written(world, "action=request.omitted", 1)
    assert omitted["details"]["count"] >= 1
    events = await written(world, "action=api.me.show", STRANGERS_BURST)
    assert len(events) == STRANGERS_BURST
    assert "too_many_failures" in {event["reason"] for event in events}
    # Refusals of a proven token have another limit.
    await person(world, ADA, "viewer")
    await refused(world, "GET", "/users", token=(await minted(world, ADA))["token"])
    assert len(await written(world, "action=api.users.list", 1)) == 1
    assert REFUSALS > STRANGERS


async def test_the_data_of_a_refused_request_is_redacted_and_truncated(world: World) -> None:
    await person(world, ADA, "viewer")
    ada = await minted(world, ADA)
    token = ada["token"]
    for path in (f"/tokens/{token}", f"/tokens/{token.upper()}", f"/users/{token}?q={token}", f"/x/{'y' * 2000}"):
        async with world.tcp.get(API + path, headers={"X-API-Key": token}) as answer:
            assert answer.status in (404, 422)
    events = await written(world, "outcome=refused", 4)
    assert token.rpartition("_")[2].lower() not in str(events).lower()
    assert ada["prefix"] in str(events)
    assert max(len(event["details"]["path"]) for event in events) == 512


async def test_refusals_are_not_recorded_when_requests_are_not(settings: Settings) -> None:
    quiet = settings.model_copy(update={"audit": Audit(requests="off")})
    async with Authority(quiet) as authority:
        assert not authority.records_refusals
        await authority.follow(settings)
        assert authority.records_refusals


async def test_refusals_on_the_control_socket_are_not_recorded(world: World) -> None:
    await refused(world, "GET", "/users/nobody@example.org")
    await person(world, ADA, "viewer")
    await refused(world, "GET", "/users", token=(await minted(world, ADA))["token"])
    await written(world, "outcome=refused", 1)
    assert len(await written(world, "outcome=refused", 1)) == 1


async def test_reading_the_log_leaves_one_event_for_any_number_of_pages(world: World) -> None:
    for number in range(5):
        await person(world, f"p{number}@example.org", "viewer")
    cursor = ""
    for _ in range(5):
        page = await ok(world, "GET", f"/audit?action=account.&limit=1{cursor}")
        cursor = f"&cursor={page['next_cursor']}"
    for _ in range(10):
        await ok(world, "GET", "/audit?after=now&action=account.")
    await ok(world, "GET", "/audit?action=account.&order=oldest")
    reads = [
        event["details"]
        for event in await written(world, "action=api.audit.list", 4)
        if event["details"]["filter"] == {"action": "account."}
    ]
    assert [(read["order"], read["pages"]) for read in reads] == [("newest", 1), ("recorded", 1), ("oldest", 1)]


async def test_the_event_of_a_read_has_the_reader_the_log_and_the_filter(world: World) -> None:
    await person(world, ADA, "editor", "blue")
    await ok(world, "PUT", "/roles/auditor", {"permissions": ["patgate.audit:list"]})
    await person(world, EVE, "auditor")
    eve = await minted(world, EVE)
    await ok(world, "GET", f"/audit?user={ADA}&denied=true&actor_name={eve['token']}", token=eve["token"])
    await ok(world, "GET", "/orgs/blue/audit", token=eve["token"])
    ours, theirs = await written(world, f"action=api.audit.list&actor={eve['id']}", 2)
    assert (ours["actor_kind"], ours["actor_name"], ours["user"], ours["outcome"]) == ("pat", "test", EVE, "allowed")
    assert ours["details"]["filter"] == {"user": ADA, "denied": True, "actor_name": eve["prefix"]}
    assert (theirs["org"], theirs["details"]["filter"]) == ("blue", {"org": "blue"})
    assert (await written(world, f"action=api.audit.list&actor={ME}", 1))[0]["actor_kind"] == "system"


async def test_reading_your_own_accounts_log_leaves_no_event(world: World) -> None:
    await person(world, ADA, "editor")
    ada = await minted(world, ADA)
    await ok(world, "GET", "/audit", token=ada["token"])
    await refused(world, "GET", "/users", token=ada["token"])
    await written(world, f"actor={ada['id']}&denied=true", 1)
    assert (await ok(world, "GET", f"/audit?actor={ada['id']}&action=api.audit.list"))["items"] == []


async def test_the_actor_of_a_change_over_the_socket_is_the_operating_systems_user(world: World) -> None:
    await person(world, ADA, "viewer")
    made = await minted(world, ADA)
    (event,) = (await ok(world, "GET", "/audit?action=account.pat.mint"))["items"]
    name = f"{pwd.getpwuid(os.geteuid()).pw_name} (uid {os.geteuid()})"
    assert (event["actor_kind"], event["actor_id"], event["actor_name"]) == ("system", ME, name)
    assert (made["created_by_kind"], made["created_by"]) == ("system", ME)


_ASK = """
import http.client, os, socket, sys
if os.geteuid() == 0:  # only root can change the user
    os.setgid(65534), os.setuid(54321)
os.environ["SUDO_USER"] = "root"
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request("POST", "/api/v1/orgs", '{"name": "red"}', {"Content-Type": "application/json"})
print(connection.getresponse().status)
"""


async def test_another_user_at_the_socket_is_identified_by_the_kernel_only(world: World) -> None:
    directory = world.authority._settings.data_dir
    directory.chmod(0o755)
    (directory / "control.sock").chmod(0o666)
    command = [sys.executable, "-c", _ASK, str(directory / "control.sock")]
    done = await asyncio.to_thread(
        subprocess.run, command, check=True, capture_output=True, text=True, timeout=HANGS_SECONDS, cwd="/"
    )
    assert done.stdout == "201\n"
    (event,) = (await ok(world, "GET", "/audit?action=account.org.add"))["items"]
    uid = 54321 if os.geteuid() == 0 else os.geteuid()
    assert event["actor_id"] == f"uid:{uid}"
    assert event["actor_name"] == "uid 54321" or uid != 54321


async def _named(peers: Peers, directory: Path) -> str:
    """The actor of a request over the socket, for these peers."""
    app = web.Application()

    async def whose(request: web.Request) -> web.Response:
        return web.Response(text=(await peers.actor(request, "r")).name)

    app.router.add_get("/", whose)
    runner = web.AppRunner(app)
    await runner.setup()
    path = directory / "s"
    try:
        await web.SockSite(runner, bind_unix(path)).start()
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
            session.get("http://localhost/") as answer,
        ):
            return await answer.text()
    finally:
        await runner.cleanup()
        path.unlink(missing_ok=True)


async def test_a_user_id_without_a_name_is_shown_alone(settings: Settings) -> None:
    def nameless(_uid: int) -> str:
        raise KeyError

    assert await _named(Peers(nameless), settings.data_dir) == f"uid {os.geteuid()}"
    assert await _named(Peers(lambda _uid: "a\x1b[31m"), settings.data_dir) == f"uid {os.geteuid()}"
    assert await _named(Peers(lambda _uid: "ada"), settings.data_dir) == f"ada (uid {os.geteuid()})"


async def test_a_directory_service_that_does_not_answer_delays_no_request(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "NAME_SECONDS", 0.05)
    answer, asked = threading.Event(), 0

    def slow(_uid: int) -> str:
        nonlocal asked
        asked += 1
        answer.wait(HANGS_SECONDS)
        return "ada"

    try:
        async with asyncio.timeout(HANGS_SECONDS):
            assert await _named(Peers(slow), settings.data_dir) == f"uid {os.geteuid()}"
        assert asked == 1
    finally:
        answer.set()


async def test_a_caller_whom_the_kernel_does_not_report_changes_nothing(world: World) -> None:
    """A TCP connection stands for any connection for which the kernel reports no user."""
    runner = web.AppRunner(socket_app(world.authority))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://127.0.0.1:{port}{API}/orgs", json={"name": "red"}) as answer,
        ):
            assert answer.status == 503
    finally:
        await runner.cleanup()
    assert (await ok(world, "GET", "/orgs"))["items"] == []
