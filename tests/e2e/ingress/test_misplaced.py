"""With every ingress file, patgate still sees misplaced tokens and headers that change the meaning of a request.

In forward auth patgate decides by the headers that the ingress sends to it, so no file may hide a header from patgate
that it forwards to the application.
"""

from __future__ import annotations

import pytest

from tests.e2e.ingress.matrix import Row
from tests.support.gateway import Token
from tests.support.ingress import Ingress
from tests.support.rawhttp import Connection, Response
from tests.support.recorder import Recorder

#: Some ingresses remove fields that ``Connection`` names: from both requests, or from neither.
NOMINATIONS = ["", "Connection: {name}\r\n", "Connection: keep-alive, {name}\r\n"]


def ask(ingress: Ingress, method: str, target: str, extra: str) -> Response:
    head = f"{method} {target} HTTP/1.1\r\nHost: gateway\r\nX-Ordinary: kept\r\n{extra}\r\n"
    with Connection(ingress.port) as connection:
        return connection.exchange(head.encode("latin-1"))


@pytest.mark.parametrize("place", ["PRIVATE-TOKEN: {token}", "Cookie: a=b; session={token}", "X-Other: see {token}"])
@pytest.mark.parametrize("target", ["/public/x", "/ui/x", "/v1/things/1"])
@pytest.mark.parametrize("login", [True, False], ids=["presented", "not presented"])
@pytest.mark.row(Row.MISPLACED)
def test_a_token_that_stands_elsewhere_does_not_reach_the_application(
    place: str, target: str, login: bool, ingress: Ingress, behind: Recorder, editor: Token
) -> None:
    presented = f"Authorization: Bearer {editor.value}\r\n" if login else ""
    response = ask(ingress, "GET", target, presented + place.format(token=editor.value) + "\r\n")
    assert response.status == 400
    assert response.json()["reason"] == "token_misplaced"
    assert behind.requests == []


@pytest.mark.parametrize("target", ["/public/x?t={token}", "/ui/x?a=b&private_token={token}", "/v1/things/1?{token}"])
@pytest.mark.row(Row.MISPLACED)
def test_a_token_in_the_query_does_not_reach_the_application(
    target: str, ingress: Ingress, behind: Recorder, editor: Token
) -> None:
    login = f"Authorization: Bearer {editor.value}\r\n"
    assert ask(ingress, "GET", target.format(token=editor.value), login).status == 400
    assert behind.requests == []


@pytest.mark.parametrize("nomination", NOMINATIONS)
@pytest.mark.parametrize(
    ("destination", "status"),
    [
        ("http://gateway/public/b", 200),
        ("/public/b", 200),
        ("http://gateway/billing/b", 403),
        ("http://gateway/nowhere/b", 403),
        ("http://elsewhere/public/b", 400),
        ("http://gateway/public/../billing/b", 400),
        ("", 400),
    ],
)
@pytest.mark.row(Row.MISPLACED)
def test_a_destination_is_judged_before_the_application_sees_it(
    destination: str, status: int, nomination: str, ingress: Ingress, behind: Recorder
) -> None:
    lines = f"Destination: {destination}\r\n" + nomination.format(name="Destination")
    response = ask(ingress, "COPY", "/public/a", lines)
    if nomination and response.status == 200:
        arrived = behind.last().all("Destination")
        assert arrived == [] or (status == 200 and arrived == [destination.encode()])
    elif status == 200:
        assert response.status == 200
        assert behind.last().all("Destination") == [destination.encode()]
    else:
        assert response.status == status
        assert behind.requests == []


@pytest.mark.parametrize("nomination", NOMINATIONS)
@pytest.mark.row(Row.MISPLACED)
def test_a_copy_source_that_patgate_cannot_judge_does_not_reach_the_application(
    nomination: str, ingress: Ingress, behind: Recorder
) -> None:
    lines = "X-Amz-Copy-Source: /bucket/secret\r\n" + nomination.format(name="x-amz-copy-source")
    if ask(ingress, "PUT", "/public/a", lines + "Content-Length: 0\r\n").status == 200:
        assert nomination
        assert behind.last().all("X-Amz-Copy-Source") == []
    else:
        assert behind.requests == []
