"""Expiry notices and the end of unused tokens, over several starts of a real gateway.

Requirements B1 (expiry), E4 (regenerated), and point 9 of the token life cycle: notices are signed, retried, and
delivered once each.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from tests.e2e.test_metrics import scrape
from tests.support.gateway import Patgate, Token
from tests.support.process import HANGS_SECONDS, LOOPBACK, command_line, free_port, wait_until
from tests.support.recorder import Recorder

DAY = 86400.0
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
EVE = "eve@example.org"
ROUTES = [{"path": "/v1/{entity}/{id}", "upstream": "app"}]


@dataclass
class Receiver:
    """An aiohttp server in its own thread; answers ``status``."""

    port: int
    status: int = 503
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        return web.Response(status=self.status)

    def run(self, ready: threading.Event) -> None:
        async def serve() -> web.AppRunner:
            app = web.Application()
            app.router.add_post("/hook", self.take)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, LOOPBACK, self.port).start()
            return runner

        runner = self._loop.run_until_complete(serve())
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found, ready = Receiver(port=free_port()), threading.Event()
    thread = threading.Thread(target=found.run, args=(ready,), name="receiver")
    thread.start()
    assert ready.wait(HANGS_SECONDS)
    yield found
    found.end()
    thread.join()


@pytest.fixture
def node(tmp_path: Path, receiver: Receiver, backend: Recorder) -> Patgate:
    """A node that is not started: it sends notices to the receiver, and its policy forbids some existing tokens."""
    (tmp_path / "webhook.secret").write_text(SECRET + "\n")
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"editor": ["things:*"]},
        "routes": ROUTES,
        "policy": {"inactive_after": "30d", "require_scopes": True},
        "notices": {"webhook": f"http://{LOOPBACK}:{receiver.port}/hook"},
    }
    environ = {"PATGATE_NOTICES__SECRET_FILE": str(tmp_path / "webhook.secret")}
    return Patgate(tmp_path / "node", config, environ=environ)


def made(node: Patgate, name: str, *options: str) -> Token:
    found = node.cli("token", "create", "--user", EVE, "--name", name, "--scope", "things:read", *options)
    return Token(id=found["id"], prefix=found["prefix"], value=found["token"])


def backdate(node: Patgate, token: Token, *, made_days_ago: float, ends_in_days: float | None, scopes: bool) -> None:
    """Backdate the token's creation and set its expiry and scopes, which patgate itself would need days for."""
    now = time.time()
    ends = None if ends_in_days is None else now + ends_in_days * DAY
    with sqlite3.connect(node.data / "patgate.db") as connection:
        changed = connection.execute(
            "UPDATE tokens SET created_at = ?, expires_at = ? WHERE id = ?",
            (now - made_days_ago * DAY, ends, token.id),
        )
        assert changed.rowcount == 1
        if not scopes:
            connection.execute("UPDATE tokens SET scopes = NULL WHERE id = ?", (token.id,))
    connection.close()


def ask(node: Patgate, token: Token) -> int:
    with node.connect() as connection:
        return connection.request("GET", "/v1/things/1", headers=token.bearer | {"Connection": "close"}).status


def noted(node: Patgate) -> int:
    """The number of notices that the store has as sent: one that is not would be sent again after a start."""
    with closing(sqlite3.connect(f"file:{node.data / 'patgate.db'}?mode=ro", uri=True, timeout=30)) as store:
        ((count,),) = store.execute("SELECT count(*) FROM tokens WHERE notified_days IS NOT NULL").fetchall()
    return int(count)


def warned(node: Patgate) -> list[int]:
    """The number of tokens that each start reported to break the policy; reported after the notices were handled."""
    return [int(line["count"]) for line in node.records() if str(line["event"]).startswith("active tokens break")]


def test_a_token_that_ends_is_told_of_once_and_one_that_nobody_uses_ends(
    node: Patgate, receiver: Receiver, backend: Recorder
) -> None:
    node.cli("user", "add", EVE, "--role", "editor")
    soon, idle = made(node, "soon", "--expires", "60d"), made(node, "idle")
    backdate(node, soon, made_days_ago=20, ends_in_days=6, scopes=False)
    backdate(node, idle, made_days_ago=31, ends_in_days=None, scopes=True)

    # The receiver rejects the notice.
    with node:
        wait_until(lambda: receiver.got, "a first try", process=node.process)
        wait_until(lambda: warned(node) == [1], "the warning of a broken policy", process=node.process)
        # The tokens that end soon are counted when notices are sent, and again a minute later.
        samples = scrape(node)
        assert samples["patgate_tokens_expiring", (("days", "7"),)] == 1
        assert samples["patgate_tokens_expiring", (("days", "14"),)] == 1
        assert ask(node, soon) == 200
        assert ask(node, idle) == 401
        with node.control_socket() as control:
            (event,) = control.call("GET", "/audit?action=account.pat.expire")["items"]
            assert (event["target_id"], event["details"]["because"]) == (idle.id, "inactive")
            assert control.call("GET", f"/tokens/{idle.id}")["status"] == "expired"
            revived = control.call("POST", f"/tokens/{idle.id}/regenerate", {"expires": DAY / 2})
        idle = Token(id=idle.id, prefix=idle.prefix, value=revived["token"])
        assert ask(node, idle) == 200
        for pid in [*node.worker_pids(), node.authority_pid()]:
            assert SECRET not in command_line(pid)
    tries = len(receiver.got)
    receiver.status = 204

    # Now the receiver accepts the notice, under the same id.
    with node:
        wait_until(lambda: len(receiver.got) > tries, "the notice again", process=node.process)
        wait_until(lambda: noted(node), "the notice marked as sent", process=node.process)
        wait_until(lambda: len(warned(node)) == 2, "the second warning", process=node.process)
        assert ask(node, idle) == 200, "it was not ended again"
    assert len(receiver.got) == tries + 1
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    headers, body = receiver.got[-1]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.digest(KEY, signed, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    document = json.loads(body)
    assert document["type"] == "token.expiring"
    data = document["data"]
    assert (data["id"], data["prefix"], data["user"], data["within_days"]) == (soon.id, soon.prefix, EVE, 7)
    assert soon.value.rpartition("_")[2] not in body.decode()

    # The notice is not sent again.
    with node:
        wait_until(lambda: len(warned(node)) == 3, "the third warning", process=node.process)
        assert [row["id"] for row in node.cli("token", "list", "--expiring", "7d")] == [idle.id, soon.id]
    assert len(receiver.got) == tries + 1
    assert SECRET.removeprefix("whsec_") not in node.log
    assert SECRET.removeprefix("whsec_") not in node.config_file.read_text()
