"""Revoked means revoked: the very next request on a kept-alive connection to either worker has the new verdict.

1,000 changes in the whole, 250 of each kind; every verdict is asked on one connection to each worker, before and after.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateway import ControlClient, Patgate, Token
from tests.support.rawhttp import Connection
from tests.support.recorder import Recorder

ROUNDS = 250
TARGET = "/v1/things/42"


@pytest.fixture(scope="module")
def workers(gateway: Patgate, backend: Recorder) -> Iterator[list[Connection]]:
    """One kept-alive connection to each worker, the same through every round."""
    found = gateway.connection_to_each_worker()
    assert len(found) == 2
    yield list(found.values())
    for connection in found.values():
        connection.close()


@pytest.fixture(scope="module")
def control(gateway: Patgate) -> Iterator[ControlClient]:
    with gateway.control_socket() as client:
        yield client


def verdicts(workers: list[Connection], token: Token, method: str = "PUT") -> list[int]:
    """The status that each worker gives to the token now."""
    statuses = []
    for connection in workers:
        response = connection.request(method, TARGET, headers=token.bearer)
        assert response.keeps_alive, "the connection would not have been kept"
        statuses.append(response.status)
    return statuses


def owner(control: ControlClient, gateway: Patgate, name: str) -> str:
    email = f"{name}@example.org"
    gateway.add_user(email, "editor")
    return email


def test_a_lowered_role_counts_on_the_next_request(
    gateway: Patgate, workers: list[Connection], control: ControlClient
) -> None:
    email = owner(control, gateway, "lowered")
    token = control.create_token(email)
    for number in range(ROUNDS):
        assert verdicts(workers, token) == [200, 200], f"round {number}, before"
        control.set_role(email, "viewer")
        assert verdicts(workers, token) == [403, 403], f"round {number}, after"
        control.set_role(email, "editor")


def test_a_suspended_owner_is_refused_on_the_next_request(
    gateway: Patgate, workers: list[Connection], control: ControlClient
) -> None:
    email = owner(control, gateway, "suspended")
    token = control.create_token(email)
    for number in range(ROUNDS):
        assert verdicts(workers, token) == [200, 200], f"round {number}, before"
        control.suspend(email)
        assert verdicts(workers, token) == [401, 401], f"round {number}, after"
        control.resume(email)


def test_a_revoked_token_is_refused_on_the_next_request(
    gateway: Patgate, workers: list[Connection], control: ControlClient
) -> None:
    email = owner(control, gateway, "revoked")
    for number in range(ROUNDS):
        token = control.create_token(email, name=f"revoked {number}")
        assert verdicts(workers, token) == [200, 200], f"round {number}, before"
        control.revoke(token)
        assert verdicts(workers, token) == [401, 401], f"round {number}, after"


def test_a_rotated_tokens_old_value_is_refused_on_the_next_request(
    gateway: Patgate, workers: list[Connection], control: ControlClient
) -> None:
    email = owner(control, gateway, "rotated")
    token = control.create_token(email)
    for number in range(ROUNDS):
        assert verdicts(workers, token) == [200, 200], f"round {number}, before"
        old, token = token, control.rotate(token)
        assert (token.id, token.prefix) == (old.id, old.prefix)
        assert verdicts(workers, old) == [401, 401], f"round {number}, after"
