"""Threat model §6: after the response to a change, the next request on any connection obeys it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.rawhttp import Connection
from tests.support.recorder import Recorder

TARGET = "/v1/things/1"


@pytest.fixture
def connections(gateway: Patgate, recorder: Recorder) -> Iterator[list[Connection]]:
    """One keep-alive connection to each worker, used once before the changes."""
    found = list(gateway.connection_to_each_worker().values())
    for connection in found:
        assert connection.request("GET", "/healthz").status == 200
    yield found
    for connection in found:
        connection.close()


def owner(gateway: Patgate, name: str) -> str:
    email = f"stale-{name}@example.org"
    gateway.add_user(email, "editor")
    return email


def statuses(connections: list[Connection], token: Token, method: str = "PUT") -> list[int]:
    return [connection.request(method, TARGET, headers=token.bearer).status for connection in connections]


CHANGES: dict[str, tuple[Callable[[Patgate, str, Token], object], int]] = {
    "revoke": (lambda gateway, email, token: gateway.cli("token", "revoke", token.id), 401),
    "rotate": (lambda gateway, email, token: gateway.cli("token", "rotate", token.id), 401),
    "delete": (lambda gateway, email, token: gateway.cli("token", "delete", token.id), 401),
    "suspend": (lambda gateway, email, token: gateway.cli("user", "suspend", email), 401),
    "remove": (lambda gateway, email, token: gateway.cli("user", "remove", email), 401),
    "addresses": (lambda gateway, email, token: gateway.cli("token", "ips", "set", token.id, "192.0.2.0/24"), 403),
    "downgrade": (lambda gateway, email, token: gateway.cli("user", "set-role", email, "viewer"), 403),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_change_counts_from_its_answer_on_every_connection(
    change: str, gateway: Patgate, connections: list[Connection]
) -> None:
    make, status = CHANGES[change]
    email = owner(gateway, change)
    token = gateway.token(email)
    assert statuses(connections, token) == [200, 200]
    make(gateway, email, token)
    assert statuses(connections, token) == [status, status]


def test_an_edited_role_counts_from_its_answer(gateway: Patgate, connections: list[Connection]) -> None:
    email = "stale-edited@example.org"
    gateway.cli("role", "set", "temporary", "things:update")
    gateway.add_user(email, "temporary")
    token = gateway.token(email)
    assert statuses(connections, token) == [200, 200]
    gateway.cli("role", "set", "temporary", "things:read")
    assert statuses(connections, token) == [403, 403]
    assert statuses(connections, token, "GET") == [200, 200]


def test_a_resumed_owner_is_served_again(gateway: Patgate, connections: list[Connection]) -> None:
    email = owner(gateway, "resumed")
    token = gateway.token(email)
    gateway.cli("user", "suspend", email)
    assert statuses(connections, token) == [401, 401]
    gateway.cli("user", "resume", email)
    assert statuses(connections, token) == [200, 200]


def test_one_users_change_leaves_anothers_tokens_alone(gateway: Patgate, connections: list[Connection]) -> None:
    first, second = owner(gateway, "first"), owner(gateway, "second")
    tokens = gateway.token(first), gateway.token(second)
    assert statuses(connections, tokens[0]) == statuses(connections, tokens[1]) == [200, 200]
    gateway.cli("user", "suspend", first)
    assert statuses(connections, tokens[0]) == [401, 401]
    assert statuses(connections, tokens[1]) == [200, 200]


def test_every_dead_token_gets_one_and_the_same_answer(gateway: Patgate, connections: list[Connection]) -> None:
    """Unknown, revoked, suspended, wrong secret: only the log has the reason."""
    revoked, suspended = gateway.token(owner(gateway, "r")), gateway.token(owner(gateway, "s"))
    gateway.cli("token", "revoke", revoked.id)
    gateway.cli("user", "suspend", "stale-s@example.org")
    live = gateway.token(owner(gateway, "live"))
    unknown = Token(id="", prefix="", value="acme_pat_" + "0" * 12 + "_" + "0" * 38)
    other = gateway.token(owner(gateway, "other"))
    wrong = Token(id=live.id, prefix=live.prefix, value=live.prefix + other.value[len(other.prefix) :])
    answers = set()
    for token in (revoked, suspended, unknown, wrong):
        response = connections[0].request("GET", TARGET, headers=token.bearer)
        document = response.json()
        document.pop("decision")
        assert response.status == 401
        answers.add((str(sorted(document.items())), *response.all("WWW-Authenticate")))
    assert len(answers) == 1, answers
