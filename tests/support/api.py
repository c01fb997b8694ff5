"""Test client for every interface of a gateway: the control API over TCP, the command line, and proxied requests.

Commands run in this process, because starting a process takes a second; they reach the node through its control socket.
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
from tests.support.process import HANGS_SECONDS, LOOPBACK, wait_until
from tests.support.rawhttp import Connection, Response


class Api:
    """A client of one node that sends one token with every request. Each request has a connection of its own."""

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
        """The response, regardless of its status. ``headers`` replace the default bearer token."""
        sent = {**(self.token.bearer if headers is None else headers), "Connection": "close"}
        data = b"" if body is None else json.dumps(body).encode()
        if data:
            sent["Content-Type"] = "application/json"
        target = "/api/v1" + path + (f"?{urlencode(query)}" if query else "")
        with Connection(self.node.control_port) as connection:
            return connection.request(
                method, target, headers=sent, body=data, host=f"{LOOPBACK}:{self.node.control_port}"
            )

    def call(self, method: str, path: str, body: object = None, /, **query: str) -> Any:
        """The document of a successful response."""
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
        """The status of a refusal and the names of the fields it reports."""
        answer = self.ask(method, path, body, query=query)
        assert answer.status >= 400, f"{method} {path} was not refused: {answer.body[:500]!r}"
        return answer.status, [error["field"] for error in answer.json().get("errors", ())]

    def mint(self, name: str, **wanted: object) -> Token:
        """Create a token with this client's own token."""
        return token_of(self.call("POST", "/tokens", {"name": name, **wanted}))

    def verb(self, token: Token, verb: str, body: object = None) -> Any:
        """Call a POST operation of a token: rotate, revoke or regenerate."""
        return self.call("POST", f"/tokens/{token.id}/{verb}", body)

    def through(self, method: str, path: str) -> Response:
        """Send a request through the gateway."""
        return through(self.node, method, path, self.token)


def through(node: Patgate, method: str, path: str, token: Token | None, *, header: str = "Authorization") -> Response:
    """Send one request through the gateway, with the token in the given header."""
    headers = {}
    if token is not None:
        headers = token.bearer if header == "Authorization" else {header: token.value}
    with node.connect() as connection:
        return connection.request(method, path, headers=headers)


def status(node: Patgate, method: str, path: str, token: Token | None) -> int:
    """The status of one request through the gateway."""
    return through(node, method, path, token).status


def soon(condition: Callable[[], Any], what: str, node: Patgate) -> Any:
    """Wait for the condition and return its first truthy value."""
    return wait_until(condition, what, process=node.process)


def command(node: Patgate, *arguments: str) -> Result:
    """Run a command with this node's configuration and return the result, regardless of its exit status."""
    environ = {name: None for name in os.environ if name.startswith("PATGATE_")}
    runner = CliRunner(env=environ | {"NO_COLOR": "1", "COLUMNS": "200", "PATGATE_CONFIG": str(node.config_file)})
    result = runner.invoke(patgate, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def cli(node: Patgate, *arguments: str) -> Any:
    """Run a command that must succeed and return its JSON document."""
    done = command(node, *arguments, "--json")
    if done.exit_code != 0:
        raise CommandFailed(f"patgate {' '.join(arguments)}: exit {done.exit_code}\n{done.output}")
    document = json.loads(done.stdout)
    if isinstance(document, dict) and isinstance(document.get("token"), str):
        SECRETS.add(document["token"])
    return document


def both(api: Api, method: str, *questions: tuple[str, object]) -> tuple[Response, Response]:
    """The responses to two requests that should be equal.

    A page ``after`` a number ends with the newest event of the audit log, and earlier requests may be recorded between
    the two requests: if the responses differ, both are requested again until a deadline.
    """
    deadline = time.monotonic() + HANGS_SECONDS
    while True:
        one, other = (api.ask(method, path, body) for path, body in questions)
        if "after=" not in questions[0][0] or one.body == other.body or time.monotonic() > deadline:
            return one, other
