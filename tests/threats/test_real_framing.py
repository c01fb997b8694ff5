"""Threat model §3 with real servers: they read numbers and bodies as patgate does, and stay in sync."""

from __future__ import annotations

import re
from hashlib import sha256
from itertools import count
from typing import Final

import pytest

from tests.support.gateway import Patgate
from tests.support.process import wait_until
from tests.support.rawhttp import Connection
from tests.support.realservers import COMMANDS, RealServer, of_this_build, told

SMUGGLED: Final = b"GET /ui/smuggled HTTP/1.1\r\nHost: smuggled\r\nX-Smuggled: "
OCTAL: Final = 0o200
BODY: Final = (b"a" * OCTAL + SMUGGLED).ljust(200, b"b")
"""Two hundred bytes. A server that reads 0200 as octal finds a request after the first 128 of them."""

ANSWERING: Final = [name for name in ("nginx", "node", "apache") if name in of_this_build(COMMANDS)]
"""Servers that can be configured to answer with a given status."""

OF_A_TEST: Final = re.compile(r"(?:GET|POST|PUT) /(?:ui|login|v1|answer)/(?!smuggled)")
"""A request that some test sends: nothing else may reach a server, and what was smuggled least of all."""

_NUMBERS: Final = count()


@pytest.fixture
def own() -> int:
    """A number that no other test has, for paths of its own."""
    return next(_NUMBERS)


def head(server: RealServer, method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {server.host}", *lines, "", ""]).encode()


def here(own: int, name: str) -> str:
    """A path of this test alone."""
    return f"/ui/{own}-{name}"


def wait_for(server: RealServer, last: str, own: int) -> list[str]:
    """The requests that the server has received, and no earlier test has sent; waits for the record of ``last``.

    Servers write a request after its answer, so that those of earlier tests may still follow: they are left out.
    """
    wait_until(lambda: last in server.requests(), f"{last} in the server's own log")
    ours = here(own, "")
    return [request for request in server.requests() if ours in request or not OF_A_TEST.match(request)]


def digest(server: RealServer, facts: dict[str, str]) -> str:
    """The digest of the body that the server has read; nginx skips the body."""
    return facts["BODY_SHA256"] if server.name != "nginx" else sha256(BODY).hexdigest()


@pytest.mark.parametrize("length", ["200", "0200", "00200", "000000000000000200"])
def test_a_length_reaches_each_server_as_the_number_that_was_read(
    length: str, server: RealServer, front: Patgate, own: int
) -> None:
    """Numbers are passed on as parsed, never as received."""
    with front.connect() as connection:
        connection.send(head(server, "POST", here(own, "first"), f"Content-Length: {length}") + BODY)
        connection.send(head(server, "GET", here(own, "second")))
        first, second = told(connection.read_response("POST")), told(connection.read_response("GET"))
    assert first["CONTENT_LENGTH"] == "200"
    assert first["PATH_INFO"] == here(own, "first")
    assert digest(server, first) == sha256(BODY).hexdigest()
    assert second["PATH_INFO"] == here(own, "second")
    assert wait_for(server, f"GET {here(own, 'second')}", own) == [
        f"POST {here(own, 'first')}",
        f"GET {here(own, 'second')}",
    ]


@pytest.mark.parametrize("size", ["5;x=y", '5;x="y;z"', "5;x", "0005"])
def test_a_chunk_that_the_grammar_allows_reaches_each_server_as_its_data(
    size: str, server: RealServer, front: Patgate, own: int
) -> None:
    with front.connect() as connection:
        request = head(server, "POST", here(own, "chunks"), "Transfer-Encoding: chunked")
        facts = told(connection.exchange(request + f"{size}\r\nhello\r\n0\r\n\r\n".encode()))
    if server.name != "nginx":
        assert facts["BODY_SHA256"] == sha256(b"hello").hexdigest()
    assert wait_for(server, f"POST {here(own, 'chunks')}", own) == [f"POST {here(own, 'chunks')}"]


@pytest.mark.parametrize(
    "size", ["5;", "5;[x=y", "5;=y", '5;x="y', "5;x=", "5;x=y z", "5,x", "5;x=y;", "0x5", "+5", "5 5"]
)
def test_a_chunk_outside_the_grammar_is_refused_and_no_server_is_asked(
    size: str, server: RealServer, front: Patgate, own: int
) -> None:
    with front.connect() as connection:
        request = head(server, "POST", here(own, "chunks"), "Transfer-Encoding: chunked")
        response = connection.exchange(request + f"{size}\r\nhello\r\n0\r\n\r\n".encode() + SMUGGLED + b"x\r\n\r\n")
        assert response.status == 400
        assert connection.ended()
    with front.connect() as connection:
        facts = told(connection.exchange(head(server, "GET", here(own, "afterwards"))))
        assert facts["PATH_INFO"] == here(own, "afterwards")
    assert wait_for(server, f"GET {here(own, 'afterwards')}", own) == [f"GET {here(own, 'afterwards')}"]


def test_a_kept_connection_stays_in_step_through_every_kind_of_body(
    server: RealServer, front: Patgate, own: int
) -> None:
    expected: list[str] = []
    with front.connect() as connection:
        for number in range(10):
            for method, lines, body in (
                ("POST", ["Content-Length: 0200"], BODY),
                ("POST", ["Transfer-Encoding: chunked"], b"00C8;x=y\r\n" + BODY + b"\r\n0\r\nX-Trailer: y\r\n\r\n"),
                ("GET", [], b""),
                ("GET", ["Content-Length: 0"], b""),
                ("PUT", ["Content-Length: 00"], b""),
            ):
                path = here(own, f"step-{number}-{len(expected)}")
                facts = told(connection.exchange(head(server, method, path, *lines) + body))
                assert (facts["REQUEST_METHOD"], facts["PATH_INFO"]) == (method, path)
                if body:
                    assert digest(server, facts) == sha256(BODY).hexdigest()
                expected.append(f"{method} {path}")
    assert wait_for(server, expected[-1], own) == expected


@pytest.mark.parametrize("name", ANSWERING)
def test_an_answer_that_asks_for_an_upgrade_says_to_what(
    name: str, servers: dict[str, RealServer], front: Patgate
) -> None:
    """RFC 9110 section 15.5.22: a 426 must have ``Upgrade``."""
    with front.connect() as connection:
        response = connection.exchange(head(servers[name], "GET", "/answer/426"))
    assert response.status == 426
    assert response.get("Upgrade") == "TLS/1.0"
    assert "upgrade" in (response.get("Connection") or "").lower()


@pytest.mark.parametrize("name", ANSWERING)
def test_an_answer_that_asks_for_proxy_credentials_says_which(
    name: str, servers: dict[str, RealServer], front: Patgate
) -> None:
    """RFC 9110 section 15.5.8: a 407 without ``Proxy-Authenticate`` is not valid."""
    with front.connect() as connection:
        response = connection.exchange(head(servers[name], "GET", "/answer/407"))
    assert response.status == 407
    assert response.get("Proxy-Authenticate") == f'Basic realm="{name}"'


def test_an_answer_has_a_date_although_its_server_nominates_it(servers: dict[str, RealServer], front: Patgate) -> None:
    with front.connect() as connection:
        response = connection.exchange(head(servers["node"], "GET", "/answer/date"))
    assert response.status == 200
    assert response.get("Date") not in (None, "Thu, 01 Jan 1970 00:00:00 GMT")


@pytest.mark.parametrize(
    ("request_line", "host", "status"),
    [
        ("CONNECT / HTTP/1.1", None, 405),
        ("CONNECT {host} HTTP/1.1", None, 405),
        ("GET {path} HTTP/1.1", "{host}:99999", 400),
        ("GET {path} HTTP/1.1", "{host}:65536", 400),
        ("GET {path} HTTP/1.1", "[:::::::]", 400),
        ("GET {path} HTTP/1.1", "[1:2:3]", 400),
    ],
)
def test_what_no_server_should_be_asked_ends_at_the_gateway(
    request_line: str, host: str | None, status: int, server: RealServer, front: Patgate, own: int
) -> None:
    lines = f"{request_line}\r\nHost: {host or '{host}'}\r\n\r\n".replace("{host}", server.host)
    lines = lines.replace("{path}", here(own, "asked"))
    with front.connect() as connection:
        assert connection.exchange(lines.encode()).status == status
        assert connection.ended()
    with front.connect() as connection:
        told(connection.exchange(head(server, "GET", here(own, "afterwards"))))
    assert wait_for(server, f"GET {here(own, 'afterwards')}", own) == [f"GET {here(own, 'afterwards')}"]


def test_the_port_of_a_host_may_have_any_value_that_ports_have(server: RealServer, front: Patgate) -> None:
    for port in ("1", "80", "65535"):
        with Connection(front.port) as connection:
            lines = f"GET /ui/x HTTP/1.1\r\nHost: {server.host}:{port}\r\n\r\n"
            assert told(connection.exchange(lines.encode()))["HTTP_HOST"] == f"{server.host}:{port}"
