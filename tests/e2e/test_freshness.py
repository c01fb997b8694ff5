"""F1, D1 to D4: a change to a grant applies to the next request on a kept-alive connection to any worker.

Twelve kinds of change, each of which ends or restores a token's access. The tests request a verdict on one connection
to each worker before and after the change, under load. ``make soak`` runs a thousand rounds of each kind
(PATGATE_TEST_ROUNDS).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

import pytest

from tests.support.gateway import ControlClient, Patgate, Token, token_of
from tests.support.load import Load
from tests.support.rawhttp import Connection
from tests.support.recorder import Recorder

ROUNDS = int(os.environ.get("PATGATE_TEST_ROUNDS", "12"))
TARGET = "/v1/things/42"
HOUR = {"expires": 3600}
ROLE = ["things:read", "things:update"]


@dataclass
class Desk:
    """The state for the changes of one kind: the operator's connection, the token, its owner and organisation."""

    control: ControlClient
    email: str
    token: Token
    org: str

    def call(self, method: str, path: str, body: object = None) -> object:
        return self.control.call(method, path, body)

    def of_token(self, method: str, verb: str, body: object = None) -> object:
        return self.call(method, f"/tokens/{self.token.id}{verb}", body)

    def of_member(self, method: str, body: object = None) -> object:
        return self.call(method, f"/orgs/{self.org}/members/{quote(self.email)}", body)

    def renewed(self, verb: str, body: object = None) -> None:
        self.token = token_of(self.control.call("POST", f"/tokens/{self.token.id}/{verb}", body))


Step = Callable[[Desk], object]


@dataclass(frozen=True)
class Kind:
    """One kind of change: ``take`` ends the token's access, after which the old value gets ``status``.

    ``give`` restores the access; ``begin`` prepares the token before the first round.
    """

    take: Step
    give: Step
    status: int
    in_org: bool = False
    scopes: tuple[str, ...] = ()
    new_value: bool = False
    """Whether ``take`` creates a new value, which works at once."""
    new_owner: bool = False
    begin: Step = lambda desk: None


def _newly_minted(desk: Desk) -> None:
    desk.token = desk.control.create_token(desk.email)


def _role_of_its_own(desk: Desk) -> None:
    desk.call("PUT", "/roles/edited", {"permissions": ROLE})
    desk.control.set_role(desk.email, "edited")


def _policy(desk: Desk) -> None:
    desk.call("PUT", f"/orgs/{desk.org}/policy", {"max_lifetime": 60})
    ended = desk.call("POST", f"/policy/expire?org={desk.org}")
    assert ended == {"expired": 1}


def _no_policy(desk: Desk) -> None:
    desk.call("PUT", f"/orgs/{desk.org}/policy", {})
    desk.renewed("regenerate", HOUR)


KINDS = {
    "revoke": Kind(
        take=lambda desk: desk.of_token("POST", "/revoke"),
        give=lambda desk: desk.renewed("regenerate", HOUR),
        status=401,
    ),
    "rotate": Kind(take=lambda desk: desk.renewed("rotate"), give=lambda desk: None, status=401, new_value=True),
    "regenerate": Kind(
        begin=lambda desk: desk.of_token("POST", "/revoke"),
        take=lambda desk: desk.renewed("regenerate", HOUR),
        give=lambda desk: desk.of_token("POST", "/revoke"),
        status=401,
        new_value=True,
    ),
    "delete": Kind(take=lambda desk: desk.of_token("DELETE", ""), give=_newly_minted, status=401),
    "scope removed": Kind(
        scopes=("things:read", "things:update"),
        take=lambda desk: desk.of_token("DELETE", "/scopes?scope=things:update"),
        give=lambda desk: desk.of_token("POST", "/scopes", {"scopes": ["things:update"]}),
        status=403,
    ),
    "scopes cleared": Kind(
        scopes=("things:*",),
        take=lambda desk: desk.of_token("DELETE", "/scopes"),
        give=lambda desk: desk.of_token("PUT", "/scopes", {"scopes": ["things:*"]}),
        status=403,
    ),
    "addresses narrowed": Kind(
        take=lambda desk: desk.of_token("PUT", "/ip-ranges", {"ip_ranges": ["192.0.2.0/24", "2001:db8::/32"]}),
        give=lambda desk: desk.of_token("DELETE", "/ip-ranges"),
        status=403,
    ),
    "suspend": Kind(
        take=lambda desk: desk.control.suspend(desk.email),
        give=lambda desk: desk.control.resume(desk.email),
        status=401,
    ),
    "remove": Kind(
        take=lambda desk: desk.call("DELETE", f"/users/{desk.email}"), give=_newly_minted, status=401, new_owner=True
    ),
    "downgrade": Kind(
        take=lambda desk: desk.control.set_role(desk.email, "viewer"),
        give=lambda desk: desk.control.set_role(desk.email, "editor"),
        status=403,
    ),
    "membership removed": Kind(
        in_org=True,
        take=lambda desk: desk.of_member("DELETE"),
        give=lambda desk: desk.of_member("PUT", {"role": "editor"}),
        status=401,
    ),
    "role edited": Kind(
        begin=_role_of_its_own,
        take=lambda desk: desk.call("PUT", "/roles/edited", {"permissions": ROLE[:1]}),
        give=lambda desk: desk.call("PUT", "/roles/edited", {"permissions": ROLE}),
        status=403,
    ),
    "policy expired": Kind(in_org=True, take=_policy, give=_no_policy, status=401),
}


@pytest.fixture(scope="module")
def workers(gateway: Patgate, backend: Recorder) -> Iterator[list[Connection]]:
    """One kept-alive connection to each worker, used in every round."""
    found = gateway.connection_to_each_worker()
    assert len(found) == 2
    yield list(found.values())
    for connection in found.values():
        connection.close()


@pytest.fixture(scope="module")
def control(gateway: Patgate) -> Iterator[ControlClient]:
    with gateway.control_socket() as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def load(gateway: Patgate, workers: list[Connection]) -> Iterator[Load]:
    """Continuous requests with the token of another user."""
    token = gateway.token(gateway.add_user("beside@example.org", "editor"))
    with Load(gateway.connect, TARGET, token.bearer, pause=0.005) as running:
        yield running
    assert {answer.status for answer in running.answers} == {200}, "the load felt changes that were not about it"


def desk_for(kind: Kind, control: ControlClient, number: int) -> Desk:
    email, org = f"fresh-{number}@example.org", f"fresh-{number}"
    control.call("POST", "/users", {"email": email, "role": "editor"})
    wanted = {"user": email, "name": "fresh", "scopes": list(kind.scopes) or None}
    if kind.in_org:
        control.call("POST", "/orgs", {"name": org})
        control.call("POST", "/users", {"email": email, "role": "editor", "org": org})
        wanted["org"] = org
    return Desk(control, email, token_of(control.call("POST", "/tokens", wanted)), org)


def verdicts(workers: list[Connection], token: Token) -> list[int]:
    """The current status of a request with the token at each worker."""
    statuses = []
    for connection in workers:
        response = connection.request("PUT", TARGET, headers=token.bearer)
        assert response.keeps_alive, "the connection would not have been kept"
        statuses.append(response.status)
    return statuses


@pytest.mark.parametrize("name", KINDS)
def test_the_next_request_has_the_new_verdict(name: str, workers: list[Connection], control: ControlClient) -> None:
    kind, number = KINDS[name], list(KINDS).index(name)
    desk = desk_for(kind, control, number)
    kind.begin(desk)
    for turn in range(ROUNDS):
        old = desk.token
        works = [200, 200]
        if name != "regenerate":
            assert verdicts(workers, old) == works, f"round {turn}, before"
        kind.take(desk)
        assert verdicts(workers, old) == [kind.status] * 2, f"round {turn}, after"
        if kind.new_value:
            assert (desk.token.id, desk.token.prefix) == (old.id, old.prefix)
            assert verdicts(workers, desk.token) == works, f"round {turn}, the new value"
        if kind.new_owner:
            desk.email = f"fresh-{number}-{turn}@example.org"
            control.call("POST", "/users", {"email": desk.email, "role": "editor"})
        kind.give(desk)
