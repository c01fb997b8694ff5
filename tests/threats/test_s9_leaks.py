"""Threat model §9: a token's secret is in no log, metric, error page, row, process title or request.

In addition, every recorder checks all requests it receives, and at the end of a run all files of all gateways that the
run has started are checked (tests/support/plugin.py).
"""

from __future__ import annotations

import base64
import secrets
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.leaks import DIRECTORIES, SECRETS, files_with_secrets, leaks, secret_part
from tests.support.plugin import EDITOR
from tests.support.process import LOOPBACK, children, of_process
from tests.support.quotas import logged, recorded
from tests.support.rawhttp import Connection, Response, bearer
from tests.support.recorder import Recorder
from tests.support.tokens import forged, unknown_prefix

USES = frozenset({"last_used_at", "last_used_ip", "use_count"})


@pytest.fixture(scope="module")
def token(gateway: Patgate) -> Token:
    return gateway.token(EDITOR, name="leaks")


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
        assert not leaks(shown, [value]), misuse.partition(":")[0]
    for target in (f"/v1/things/{value}/../x", f"/nowhere/{value}", f"/v1/things/1?token={value}"):
        response = ask(gateway, b"", target)
        assert secret_part(value).encode() not in response.body


def test_no_metric_and_no_process_title_has_a_secret(gateway: Patgate, token: Token) -> None:
    assert gateway.control("GET", "/metrics").status == 200
    page = gateway.control("GET", "/metrics").body
    pids = [gateway.process.pid, *children(gateway.process.pid)]
    titles = b"".join(of_process(pid, name) for pid in pids for name in ("cmdline", "environ", "comm"))
    assert token.value in SECRETS
    assert not leaks(page, SECRETS)
    assert not leaks(titles, SECRETS)


@pytest.mark.parametrize("spelled", ["Bearer", "Basic", "X-Api-Key"])
def test_no_request_to_a_backend_has_a_secret(spelled: str, gateway: Patgate, recorder: Recorder, token: Token) -> None:
    basic = base64.b64encode(f"git:{token.value}".encode()).decode()
    line = {
        "Bearer": f"Authorization: Bearer {token.value}",
        "Basic": f"Authorization: Basic {basic}",
        "X-Api-Key": f"X-Api-Key: {token.value}",
    }[spelled]
    assert ask(gateway, f"{line}\r\n".encode()).status == 200
    assert recorder.last().target == b"/v1/things/1"
    assert not leaks(b"".join(recorder.received), SECRETS)


def test_log_values_are_escaped(gateway: Patgate, recorder: Recorder) -> None:
    """One record, one line: no client input can end a line or control a terminal."""
    for lines, target in (
        (b"User-Agent: a\x1b[31mb\r\n", "/public/x%0d%0aforged"),
        (b"", "/nowhere/%0d%0aforged?\x1b"),
        (b"", "/nowhere/%0d%0aforged"),
    ):
        logged(gateway, partial(ask, gateway, lines, target))
    assert "\x1b" not in gateway.log
    assert not any(line.startswith("forged") for line in gateway.log.splitlines())


@pytest.mark.parametrize("change", [str.upper, str.lower, str.swapcase], ids=lambda change: change.__name__)
def test_a_token_in_another_letter_case_is_in_no_log_and_no_row(change: Any, gateway: Patgate, token: Token) -> None:
    """A secret in the wrong case leaves few variants to try, and the checksum shows which is correct."""
    written = change(token.value)
    escaped = written.replace("_", "%5F")
    lines = f"User-Agent: {written}\r\nReferer: https://x.example/?t={written}\r\nX-Other: {escaped}\r\n".encode()
    for path in (f"/nowhere/{written}", f"/nowhere/{escaped}", f"/v1/things/{written}?t={written}"):
        response = logged(gateway, partial(ask, gateway, lines, path))
        assert secret_part(token.value)[:8].lower() not in response.body.decode().lower()
        _, event = recorded(gateway, partial(ask, gateway, lines, path))
        assert secret_part(token.value)[:8].lower() not in str(event).lower()
    assert secret_part(token.value)[:8].lower() not in gateway.log.lower()


def tokens(gateway: Patgate) -> list[dict[str, Any]]:
    """Every token as it was made: its uses, which are written some seconds later, may be those of an earlier test."""
    with gateway.control_socket() as control:
        found = control.call("GET", "/tokens?limit=1000")["items"]
    return [{name: value for name, value in item.items() if name not in USES} for item in found]


@pytest.mark.parametrize("field", ["name", "description", "user"])
def test_a_token_given_as_a_text_is_refused_and_not_repeated(field: str, gateway: Patgate, token: Token) -> None:
    body = {"user": EDITOR, "name": "x", field: f"{token.value}@x" if field == "user" else f"old: {token.value}"}
    before = tokens(gateway)
    done = gateway.run("token", "create", *(f"--{name}={value}" for name, value in body.items()))
    assert done.returncode == 1
    assert secret_part(token.value)[:8] not in done.stdout + done.stderr
    if field != "user":
        assert f"{field}: must not contain a token" in done.stderr.lower()
    assert tokens(gateway) == before


def test_nothing_that_any_gateway_wrote_has_a_secret(gateway: Patgate, token: Token) -> None:
    """Logs, databases and all other files of all gateways that this process has started so far."""
    assert token.value in SECRETS
    assert gateway.directory in DIRECTORIES
    assert (gateway.directory / "patgate.log").stat().st_size
    assert not files_with_secrets()


def test_known_and_unknown_prefixes_are_refused_alike(gateway: Patgate, recorder: Recorder, token: Token) -> None:
    """The same text and headers for a wrong secret, an unknown prefix, and a string that was never a token."""
    wrong = forged(token.prefix)
    unknown = forged(unknown_prefix())
    never = token.value[:-1] + ("1" if token.value[-1] == "0" else "0")
    answers = set()
    for value in (wrong, unknown, never, wrong, unknown):
        response = ask(gateway, f"Authorization: Bearer {value}\r\n".encode())
        document = response.json()
        assert document.pop("decision") == response.get("X-Request-Id")
        headers = sorted(
            (name, value)
            for name, value in response.headers
            if name not in (b"X-Request-Id", b"Content-Length", b"Date")
        )
        answers.add((response.status, str(sorted(document.items())), str(headers), len(response.body)))
    assert len(answers) == 1, answers
    assert recorder.requests == []


@pytest.mark.alone
def test_known_and_unknown_prefixes_are_refused_alike_in_time(gateway: Patgate) -> None:
    """Each costs one lookup the first time and none the second; a hash would take many times as long."""
    seconds: dict[tuple[str, int], list[float]] = {}
    with gateway.control_socket() as control, gateway.connect() as connection:
        for number in range(25):
            asked = [("known", control.create_token(EDITOR, name="never used").prefix), ("unknown", unknown_prefix())]
            # The first request finds cold caches.
            for kind, prefix in (("neither", unknown_prefix()), *(asked if number % 2 else reversed(asked))):
                for time in (1, 2):
                    began = perf_counter()
                    answer = connection.request("GET", "/v1/things/1", headers=bearer(forged(prefix)))
                    seconds.setdefault((kind, time), []).append(perf_counter() - began)
                    assert answer.status == 401
    for time in (1, 2):
        known_median, unknown_median = median(seconds["known", time]), median(seconds["unknown", time])
        assert 1 / 4 < known_median / unknown_median < 4, (known_median, unknown_median)


@pytest.mark.parametrize(("method", "path"), [("POST", "/users"), ("GET", "/users"), ("POST", "/tokens")])
def test_a_page_in_a_browser_reaches_no_verb_of_the_control_listener(method: str, path: str, gateway: Patgate) -> None:
    """A browser sends no credential by itself, and the page can read no response."""
    with Connection(gateway.control_port) as connection:
        headers = {"Content-Type": "application/json", "Origin": "https://evil.example"}
        body = b'{"email": "mallory@example.org", "role": "admin"}' if method == "POST" else b""
        answer = connection.request(
            method, f"/api/v1{path}", headers=headers, body=body, host=f"{LOOPBACK}:{gateway.control_port}"
        )
    assert answer.status == 401
    assert not [name for name, _ in answer.headers if name.lower().startswith(b"access-control-")]
    with gateway.control_socket() as control:
        assert "mallory@example.org" not in str(control.call("GET", "/users"))


@pytest.mark.parametrize(
    "data",
    [
        b"GET /public/MARK/../a HTTP/1.1\r\nHost: gateway\r\n\r\n",
        b"GET /nowhere/MARK?MARK HTTP/1.1\r\nHost: gateway\r\n\r\n",
        b"MARK /v1/things/MARK HTTP/1.1\r\nHost: gateway\r\n\r\n",
        b"GET /v1/MARK HTTP/1.1\r\nHost: gateway\r\nAuthorization: MARK MARK\r\n\r\n",
        b"GET /v1/things HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer MARK\r\n\r\n",
        b"GET /v1/things HTTP/1.1\r\nHost: gateway\r\nX-Api-Key: MARK\r\n\r\n",
        b"GET /public/a HTTP/1.1\r\nHost: MARK/MARK\r\n\r\n",
        b"GET /public/a HTTP/1.1\r\nHost: gateway\r\nMARK: \0\r\n\r\n",
        b"GET /public/a HTTP/1.1\r\nHost: gateway\r\nConnection: MARK MARK\r\n\r\n",
        b"GET /public/a HTTP/1.1\r\nHost: gateway\r\nExpect: MARK\r\n\r\n",
        b"GET /public/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: MARK\r\n\r\n",
        b"GET /public/a HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: MARK\r\n\r\n",
        b"POST /public/a HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\nMARK\r\n\r\n",
        b"GET http://MARK/ HTTP/1.1\r\nHost: gateway\r\n\r\n",
        b"MARK\r\n\r\n",
    ],
    ids=repr,
)
def test_what_is_refused_is_never_echoed(data: bytes, gateway: Patgate) -> None:
    mark = b"<script>mark" + secrets.token_hex(4).encode()
    with gateway.connect() as connection:
        response = connection.exchange(data.replace(b"MARK", mark), method="GET")
    assert 400 <= response.status < 500
    shown = response.body + b"".join(name + b": " + value for name, value in response.headers)
    assert mark[-8:] not in shown
    assert b"<script" not in shown.lower()


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/nowhere"])
def test_the_control_listener_grants_no_other_origin_anything(path: str, gateway: Patgate) -> None:
    with Connection(gateway.control_port) as connection:
        for method in ("GET", "OPTIONS"):
            headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
            response = connection.request(method, path, headers=headers, host=f"{LOOPBACK}:{gateway.control_port}")
            assert not [name for name, _ in response.headers if name.lower().startswith(b"access-control-")]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8081", "127.0.0.1.evil.example", "0"])
def test_the_control_listener_answers_only_to_its_own_name(host: str, gateway: Patgate) -> None:
    """Otherwise a page whose name resolves to the loopback could read the metrics (DNS rebinding)."""
    with Connection(gateway.control_port) as connection:
        response = connection.request("GET", "/metrics", host=host)
    assert 400 <= response.status < 500
    assert b"patgate_requests_total" not in response.body
