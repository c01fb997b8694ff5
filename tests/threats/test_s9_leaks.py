"""threats.md §9: a token's secret is in no log, metric, error page, row, process title or backend request.

By its directory's name this module runs after e2e/ and faults/, so that it reads what all of them left behind.
"""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.support.gateway import DIRECTORIES, SECRETS, Patgate, Token, secret_part
from tests.support.plugin import EDITOR
from tests.support.process import children, wait_until
from tests.support.rawhttp import Response
from tests.support.recorder import Recorder


@pytest.fixture(scope="module")
def token(gateway: Patgate) -> Token:
    return gateway.token(EDITOR, name="leaks")


def spellings(token: str) -> list[bytes]:
    """The secret as it is, and inside the Basic credentials that git and pip make of it."""
    secret = secret_part(token)
    basic = [base64.b64encode(f"{user}:{token}".encode())[-24:-4] for user in ("git", "__token__", "admin")]
    return [secret.encode(), secret[:32].encode(), *basic]


def ask(gateway: Patgate, lines: bytes, target: str = "/v1/things/1") -> Response:
    with gateway.connect() as connection:
        return connection.exchange(f"GET {target} HTTP/1.1\r\nHost: gateway\r\n".encode() + lines + b"\r\n")


def test_no_answer_to_a_misused_token_repeats_it(gateway: Patgate, recorder: Recorder, token: Token) -> None:
    value = token.value
    misuses = [
        f"Authorization: {value}\r\n",
        f"Authorization: Token {value}\r\n",
        f"Authorization: Bearer {value} \r\nX-Api-Key: {value}\r\n",
        f"Authorization: Bearer {value}\r\nAuthorization: Bearer {value}\r\n",
        f"Authorization: Bearer {value}x\r\n",
        f"Authorization: Bearer {value},{value}\r\n",
        f"{value}: {value}\r\n",
        f"Authorization: Bearer {value}\x01\r\n",
    ]
    for misuse in misuses:
        response = ask(gateway, misuse.encode())
        shown = response.body + b"".join(name + value for name, value in response.headers)
        assert not any(spelling in shown for spelling in spellings(value)), misuse.partition(":")[0]
    for target in (f"/v1/things/{value}/../x", f"/nowhere/{value}", f"/v1/things/1?token={value}"):
        response = ask(gateway, b"", target)
        assert secret_part(value).encode() not in response.body


def test_no_metric_and_no_process_title_has_a_secret(gateway: Patgate, token: Token) -> None:
    assert gateway.control("GET", "/metrics").status == 200
    page = gateway.control("GET", "/metrics").body
    pids = [gateway.process.pid, *children(gateway.process.pid)]
    titles = b"".join(
        Path(f"/proc/{pid}/{name}").read_bytes() for pid in pids for name in ("cmdline", "environ", "comm")
    )
    for secret in SECRETS:
        for spelling in spellings(secret):
            assert spelling not in page
            assert spelling not in titles


def test_no_request_to_a_backend_has_a_secret(backend: Recorder) -> None:
    seen = b"".join(backend.received)
    assert not any(spelling in seen for secret in SECRETS for spelling in spellings(secret))


def test_log_values_are_escaped(gateway: Patgate, recorder: Recorder) -> None:
    """One record, one line: nothing that a client sends can end a line or move a terminal's cursor."""
    ask(gateway, b"User-Agent: a\x1b[31mb\r\n", "/public/x%0d%0aforged")
    ask(gateway, b"", "/nowhere/%0d%0aforged?\x1b")
    response = ask(gateway, b"", "/nowhere/logged-marker")
    decision = response.json()["decision"]
    wait_until(lambda: decision in gateway.log, "the refusal in the log", seconds=5)
    assert "\x1b" not in gateway.log
    assert not any(line.startswith("forged") for line in gateway.log.splitlines())


def test_nothing_that_any_gateway_wrote_has_a_secret(gateway: Patgate, token: Token) -> None:
    """Logs, databases and every other file, of every gateway that this run of the suite has started."""
    assert SECRETS, "no test before this one made a token"
    files = [file for directory in DIRECTORIES for file in directory.rglob("*") if file.is_file()]
    assert any(file.name == "patgate.log" for file in files)
    for file in files:
        content = file.read_bytes()
        for secret in SECRETS:
            for spelling in spellings(secret):
                assert spelling not in content, f"a secret is in {file.name}"
