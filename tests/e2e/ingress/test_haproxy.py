"""HAProxy's file refuses what its Lua part has not allowed, and gives HAProxy nothing that it cannot take."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gateway import Patgate
from tests.support.ingress import haproxy
from tests.support.rawhttp import Connection
from tests.support.recorder import Recorder

FAILURES = {
    "an error": 'error("boom")',
    "an error of the language": "local nothing = nil; nothing.x = 1",
    "a loop that HAProxy ends": "while true do end",
    "a return too early": "if true then return end",
}
"""Statements that end the action of patgate.lua before it has asked."""


@pytest.mark.parametrize("statement", FAILURES.values(), ids=FAILURES)
def test_a_request_whose_verdict_fails_is_refused(
    statement: str, tmp_path: Path, asked: Patgate, behind: Recorder
) -> None:
    """HAProxy carries on with a request if a Lua action fails, as if it had allowed it."""
    begin = "    local headers, lines = {}, 0\n"
    with haproxy(
        tmp_path,
        application=behind.port,
        forward_auth=asked.forward_auth_port,
        script=lambda text: text.replace(begin, f"    {statement}\n{begin}", 1),
    ) as running:
        assert statement in (tmp_path / "patgate.lua").read_text()
        for target in ("/billing/x", "/healthz"):
            with Connection(running.port) as connection:
                response = connection.request("GET", target)
            assert response.status == 503
            assert response.get("Retry-After") == "1"
            assert response.json()["reason"] == "unavailable"
        assert behind.requests == []


def test_no_number_of_headers_ends_haproxy(tmp_path: Path, asked: Patgate, behind: Recorder) -> None:
    """HAProxy 2.6 crashes if its HTTP client gets as many headers as a request may have."""
    with haproxy(tmp_path, application=behind.port, forward_auth=asked.forward_auth_port) as running:
        for count in range(96, 136):
            lines = "".join(f"X-{number}: {number}\r\n" for number in range(count))
            with Connection(running.port) as connection:
                response = connection.exchange(f"GET /healthz HTTP/1.1\r\nHost: gateway\r\n{lines}\r\n".encode())
            assert response.status in (200, 400, 431), count
            if response.status == 431:
                assert response.json()["reason"] == "head_too_large"
        assert running.process.exit_code is None
