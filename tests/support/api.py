"""A gateway from all its sides: the control API over TCP with a token, the command line, and requests through it.

Commands run in this process, because a process of their own costs a second; they reach the node by its control socket.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from click.testing import CliRunner, Result

from proxy.cli.main import patgate
from tests.support.gateway import CommandFailed, Patgate, Token, token_of
from tests.support.leaks import SECRETS
from tests.support.process import LOOPBACK, wait_until
from tests.support.rawhttp import Connection, Response

SOON = 60.0
"""Seconds within which what is written beside the requests' path is there, on any machine."""


class Api:
    """One who asks: a node, and the token that every request carries. Each request has a connection of its own."""

    def __init__(self, node: Patgate, token: Token) -> None:
        self.node = node
        self.token = token

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Response:
        """Whatever is answered. ``headers`` stand instead of the token as a bearer's."""
        sent = {**(self.token.bearer if headers is None else headers), "Connection": "close"}
        data = b"" if body is None else json.dumps(body).encode()
        if data:
            sent["Content-Type"] = "application/json"
        target = "/api/v1" + path + (f"?{urlencode(query)}" if query else "")
        with Connection(self.node.control_port, seconds=30) as connection:
            return connection.request(
                method, target, headers=sent, body=data, host=f"{LOOPBACK}:{self.node.control_port}"
            )

    def call(self, method: str, path: str, body: object = None, /, **query: str) -> Any:
        """The document of a success."""
        answer = self.ask(method, path, body, query=query)
        assert 200 <= answer.status < 300, f"{method} {path}: {answer.status} {answer.body[:500]!r}"
        document = answer.json()
        if isinstance(document, dict) and isinstance(document.get("token"), str):
            SECRETS.add(document["token"])
        return document

    def items(self, path: str, /, **query: str) -> list[Any]:
        """The first page of a list."""
        found: list[Any] = self.call("GET", path, **query)["items"]
        return found

    def refusal(self, method: str, path: str, body: object = None, /, **query: str) -> tuple[int, list[str]]:
        """The status of a refusal, and the fields that it names."""
        answer = self.ask(method, path, body, query=query)
        assert answer.status >= 400, f"{method} {path} was not refused: {answer.body[:500]!r}"
        return answer.status, [error["field"] for error in answer.json().get("errors", ())]

    def mint(self, name: str, **wanted: object) -> Token:
        """A token that this one makes."""
        return token_of(self.call("POST", "/tokens", {"name": name, **wanted}))

    def verb(self, token: Token, verb: str, body: object = None) -> Any:
        """One of the verbs of a token that are POST: rotate, revoke, regenerate."""
        return self.call("POST", f"/tokens/{token.id}/{verb}", body)

    def through(self, method: str, path: str) -> Response:
        """A request through the gateway."""
        return through(self.node, method, path, self.token)


def through(node: Patgate, method: str, path: str, token: Token | None, *, header: str = "Authorization") -> Response:
    """One request through the gateway, with the token in this header."""
    headers = {}
    if token is not None:
        headers = token.bearer if header == "Authorization" else {header: token.value}
    with node.connect() as connection:
        return connection.request(method, path, headers=headers)


def status(node: Patgate, method: str, path: str, token: Token | None) -> int:
    """How such a request is answered."""
    return through(node, method, path, token).status


def soon(condition: Callable[[], Any], what: str, node: Patgate) -> Any:
    """The first value of the condition that is truthy."""
    return wait_until(condition, what, seconds=SOON, process=node.process)


def command(node: Patgate, *arguments: str) -> Result:
    """A command with this node's configuration, however it ends."""
    environ = {name: None for name in os.environ if name.startswith("PATGATE_")}
    runner = CliRunner(env=environ | {"NO_COLOR": "1", "COLUMNS": "200", "PATGATE_CONFIG": str(node.config_file)})
    result = runner.invoke(patgate, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def cli(node: Patgate, *arguments: str) -> Any:
    """The JSON document of a command that succeeds."""
    done = command(node, *arguments, "--json")
    if done.exit_code != 0:
        raise CommandFailed(f"patgate {' '.join(arguments)}: exit {done.exit_code}\n{done.output}")
    document = json.loads(done.stdout)
    if isinstance(document, dict) and isinstance(document.get("token"), str):
        SECRETS.add(document["token"])
    return document


def both(api: Api, method: str, *questions: tuple[str, object]) -> tuple[Response, Response]:
    """The answers to two questions.

    A page ``after`` a number ends with the newest event of the audit log, and earlier requests may be recorded between
    the two: where the answers differ they are asked for again, for a while.
    """
    deadline = time.monotonic() + 10
    while True:
        one, other = (api.ask(method, path, body) for path, body in questions)
        if "after=" not in questions[0][0] or one.body == other.body or time.monotonic() > deadline:
            return one, other
