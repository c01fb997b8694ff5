"""An ingress whose patgate is down, frozen, restarted or does not trust it: an answer soon, and never a wrong one.

One gateway fails once for all ingresses at the same time, before the first of the tests that run alone; all tests read
what each ingress answered meanwhile.
"""

from __future__ import annotations

import copy
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from tests.e2e.ingress.matrix import Row
from tests.support.gateway import Patgate, Token
from tests.support.ingress import INGRESSES, Ingress, asked_port
from tests.support.plugin import EDITOR, ROLES, ROUTES
from tests.support.process import wait_until
from tests.support.rawhttp import Connection, Response
from tests.support.recorder import Recorder

WITHIN_SECONDS = 2.0
MARGIN_SECONDS = 1.5
"""Tolerance for a loaded machine; an ingress without its timeouts would wait for at least 15 seconds."""

CONFIG = {
    "workers": 1,
    "listen": {"forward_auth": {"trusted": ["127.0.0.1/32"]}, "ext_authz": {"trusted": ["127.0.0.1/32"]}},
    "upstreams": {"app": {"servers": ["http://127.0.0.1:9"]}},
    "roles": ROLES,
    "routes": ROUTES,
}


@dataclass(kw_only=True, slots=True)
class Seen:
    """What one ingress answered in each phase: to allowed requests, with the seconds, and to refused ones."""

    allowed: dict[str, list[tuple[Response, float]]] = field(default_factory=dict)
    refused: dict[str, list[Response]] = field(default_factory=dict)
    arrived: dict[str, int] = field(default_factory=dict)
    own_unavailability: bool = False


def ask(ingress: Ingress, token: Token | None) -> tuple[Response, float]:
    begun = time.monotonic()
    with Connection(ingress.port, seconds=20) as connection:
        response = connection.request("GET", "/v1/things/1", headers=token.bearer if token else {})
    return response, time.monotonic() - begun


class Outage:
    """Ingresses in front of one gateway and one application, and what they answer while the gateway fails."""

    def __init__(self, node: Patgate, application: Recorder, ingresses: Mapping[str, Ingress]) -> None:
        self.node = node
        self.application = application
        self.ingresses = ingresses
        self.token = node.token(EDITOR)
        self.seen = {name: Seen(own_unavailability=ingress.own_unavailability) for name, ingress in ingresses.items()}

    def all(self, work: Callable[[Ingress], object]) -> None:
        with ThreadPoolExecutor(len(self.ingresses)) as pool:
            list(pool.map(work, self.ingresses.values()))

    def observe(self, phase: str, *, token: Token | None = None) -> None:
        """Send an allowed request and one without a token through every ingress at the same time."""
        self.application.clear()

        def one(ingress: Ingress) -> None:
            seen = self.seen[ingress.name]
            seen.allowed.setdefault(phase, []).append(ask(ingress, token or self.token))
            seen.refused.setdefault(phase, []).append(ask(ingress, None)[0])

        self.all(one)
        for seen in self.seen.values():
            seen.arrived[phase] = len(self.application.requests)

    def wait_for_verdicts(self) -> None:
        self.all(
            lambda ingress: wait_until(
                lambda: ask(ingress, self.token)[0].status == 200, f"verdicts through {ingress.name}"
            )
        )


@pytest.fixture(scope="module")
def outage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Seen]]:
    with ExitStack() as stack:
        application = stack.enter_context(Recorder(watched=False))
        node = stack.enter_context(Patgate(tmp_path_factory.mktemp("patgate"), CONFIG))
        node.add_user(EDITOR, "editor")
        ingresses = {
            name: stack.enter_context(
                start(tmp_path_factory.mktemp(name), application=application.port, forward_auth=asked_port(name, node))
            )
            for name, start in INGRESSES.items()
        }
        watched = Outage(node, application, ingresses)
        watched.wait_for_verdicts()

        cold = node.token(EDITOR, name="that no worker has seen")
        authority = node.authority_pid()
        os.kill(authority, signal.SIGSTOP)
        try:
            watched.observe("authority", token=cold)
        finally:
            os.kill(authority, signal.SIGCONT)
        watched.wait_for_verdicts()

        os.killpg(node.process.pid, signal.SIGSTOP)
        try:
            watched.observe("frozen")
            watched.observe("frozen")
        finally:
            os.killpg(node.process.pid, signal.SIGCONT)
        watched.wait_for_verdicts()

        node.stop()
        watched.observe("down")
        node.launch()
        while not node.is_ready():
            watched.observe("restarted")
        watched.wait_for_verdicts()
        watched.observe("running")

        untrusting = copy.deepcopy(node.config)
        for name in ("forward_auth", "ext_authz"):
            untrusting["listen"][name]["trusted"] = ["192.0.2.1/32"]
        node.begin(untrusting)
        node.process.signal(signal.SIGHUP)
        wait_until(
            lambda: any(record["event"] == "reloaded" for record in node.records()), "reloaded", process=node.process
        )
        watched.observe("untrusted")
        yield watched.seen


@pytest.fixture(params=INGRESSES)
def seen(request: pytest.FixtureRequest, outage: Mapping[str, Seen]) -> Seen:
    return outage[request.param]


def unavailable(seen: Seen, phase: str, *, page: int | None = None) -> None:
    """Every answer of the phase says so, soon; ``page`` is the status of a page that the ingress itself makes of it."""
    for response, took in seen.allowed[phase]:
        if page is not None:
            assert response.status == page
        else:
            assert response.status == 503
            assert response.get("Content-Type") == "application/problem+json"
            assert int(response.get("Retry-After") or 0) >= 1
            assert response.json()["status"] == 503
        assert took < WITHIN_SECONDS + MARGIN_SECONDS
    assert {response.status for response in seen.refused[phase]} <= {401, page or 503}
    assert seen.arrived[phase] == 0


@pytest.mark.alone
@pytest.mark.row(Row.DOWN)
def test_an_ingress_without_patgate_says_that_authorization_is_unavailable(seen: Seen) -> None:
    unavailable(seen, "down", page=502 if seen.own_unavailability else None)


@pytest.mark.alone
@pytest.mark.row(Row.FROZEN)
def test_an_ingress_does_not_wait_for_a_frozen_patgate(seen: Seen) -> None:
    """Its connections stay open, and new ones are accepted by the kernel, but nothing is answered."""
    unavailable(seen, "frozen", page=504 if seen.own_unavailability else None)


@pytest.mark.alone
@pytest.mark.row(Row.AUTHORITY)
def test_an_ingress_passes_on_that_the_authority_does_not_answer(seen: Seen) -> None:
    unavailable(seen, "authority")


@pytest.mark.row(Row.RESTARTED)
def test_verdicts_are_right_or_missing_while_patgate_starts(seen: Seen) -> None:
    missing = {502, 503, 504} if seen.own_unavailability else {503}
    assert {response.status for response, _ in seen.allowed["restarted"]} <= {200, *missing}
    assert {response.status for response in seen.refused["restarted"]} <= {401, *missing}
    assert [response.status for response, _ in seen.allowed["running"]] == [200]
    assert [response.status for response in seen.refused["running"]] == [401]


@pytest.mark.row(Row.UNTRUSTED)
def test_an_ingress_that_is_not_trusted_gets_no_verdict(seen: Seen) -> None:
    for response in (*(answer for answer, _ in seen.allowed["untrusted"]), *seen.refused["untrusted"]):
        assert response.status == 403
        assert response.json()["reason"] == "peer_untrusted"
    assert seen.arrived["untrusted"] == 0
