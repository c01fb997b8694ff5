"""Plain HTTP clients through a gateway: httpx, requests and curl, used the way Terraform-style tools use them.

Requirements C10 (they authenticate with a token as Bearer), D8 (or as X-API-Key, and with an organisation's key alike),
D10 and F1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import program
from tests.support.gateway import Patgate, Token, token_of
from tests.support.plugin import EDITOR, VIEWER
from tests.support.process import HANGS_SECONDS, run
from tests.support.recorder import Recorder
from tests.support.remote import Remote, running

CLIENTS = ["httpx", "requests", "curl"]
HEADERS = ["Authorization", "X-API-Key"]
LIFE = (
    ("POST", "/v1/things", '{"name": "lamp"}', "create"),
    ("GET", "/v1/things/lamp", None, "read"),
    ("GET", "/v1/things?name=lamp", None, "list"),
    ("PUT", "/v1/things/lamp", '{"name": "lamp", "colour": "red"}', "update"),
    ("PATCH", "/v1/things/lamp", '{"colour": "blue"}', "update"),
    ("DELETE", "/v1/things/lamp", None, "delete"),
)
"""The requests of a tool that manages a resource, from ``apply`` to ``destroy``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str


clients = running("http_client")


@pytest.fixture(scope="module")
def org(gateway: Patgate) -> str:
    with gateway.control_socket() as control:
        control.call("POST", "/orgs", {"name": "http-clients"})
    return "http-clients"


def ask(
    clients: Remote, client: str, url: str, headers: dict[str, str], *, method: str = "GET", content: str | None = None
) -> Answer:
    if content is not None:
        headers = headers | {"Content-Type": "application/json"}
    if client == "curl":
        return curl(clients.process.log.parent, url, headers, method, content)
    found = clients.ask("request", library=client, method=method, url=url, headers=headers, content=content)
    return Answer(**found)


def curl(directory: Path, url: str, headers: dict[str, str], method: str, content: str | None) -> Answer:
    """Run curl; bearer tokens are passed with its own option for them."""
    body, head = directory / "body", directory / "head"
    argv = [
        program("curl"),
        "-q",
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        "--max-time",
        str(HANGS_SECONDS),
        "-X",
        method,
    ]
    argv += ["--output", str(body), "--dump-header", str(head)]
    for name, value in headers.items():
        bearer = name == "Authorization"
        argv += ["--oauth2-bearer", value.removeprefix("Bearer ")] if bearer else ["--header", f"{name}: {value}"]
    if content is not None:
        argv += ["--data-binary", content]
    done = run([*argv, url])
    assert done.returncode == 0, done.stderr
    status_line, *lines = head.read_text().splitlines()
    found: dict[str, str] = {}
    for line in filter(None, lines):
        name, _, value = line.partition(": ")
        key = name.lower()
        found[key] = f"{found[key]}, {value}" if key in found else value
    return Answer(status=int(status_line.split()[1]), headers=found, text=body.read_text())


def presented(token: Token, header: str) -> dict[str, str]:
    return token.bearer if header == "Authorization" else {header: token.value}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_manages_a_resource_with_the_token_in_either_header(
    client: str, header: str, gateway: Patgate, recorder: Recorder, clients: Remote
) -> None:
    """C10, D8: create, read, list, update and delete reach the backend with the owner's identity but no credential."""
    token = gateway.token(EDITOR, name=f"{client} with {header}")
    for method, target, content, _ in LIFE:
        answer = ask(
            clients, client, gateway.base_url + target, presented(token, header), method=method, content=content
        )
        assert (answer.status, answer.text) == (200, "ok\n")
        seen = recorder.last()
        assert seen.request_line == f"{method} {target} HTTP/1.1".encode()
        assert seen.body == (content or "").encode()
        assert (seen.only("X-Auth-Email"), seen.only("X-Auth-Token")) == (EDITOR, token.prefix)
        assert not seen.all("Authorization") and not seen.all("X-API-Key")
    assert len(recorder.requests) == len(LIFE)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_is_told_what_its_token_lacks(
    client: str, header: str, gateway: Patgate, recorder: Recorder, clients: Remote
) -> None:
    """C10, D8, E1: a viewer's token may read; a challenge and a problem document name the permission that it lacks."""
    token = gateway.token(VIEWER, name=f"{client} with {header}")
    for method, target, content, operation in LIFE:
        answer = ask(
            clients, client, gateway.base_url + target, presented(token, header), method=method, content=content
        )
        if operation in ("read", "list"):
            assert answer.status == 200
            continue
        assert answer.status == 403
        assert f'error="insufficient_scope", scope="things:{operation}"' in answer.headers["www-authenticate"]
        problem: dict[str, Any] = json.loads(answer.text)
        assert (problem["status"], problem["reason"]) == (403, "role_denies")
    assert [request.request_line.split()[0] for request in recorder.requests] == [b"GET", b"GET"]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_whose_token_is_revoked_is_refused_on_the_connection_it_keeps(
    client: str, header: str, gateway: Patgate, recorder: Recorder, clients: Remote
) -> None:
    """Requirements C10, D10, F1."""
    token = gateway.token(EDITOR, name=f"{client} with {header}")
    url = f"{gateway.base_url}/v1/things/lamp"
    assert ask(clients, client, url, presented(token, header)).status == 200
    with gateway.control_socket() as control:
        control.revoke(token)
    answer = ask(clients, client, url, presented(token, header))
    assert answer.status == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert len(recorder.requests) == 1


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("client", CLIENTS)
def test_an_organisations_key_goes_where_a_persons_token_does(
    client: str, header: str, gateway: Patgate, recorder: Recorder, clients: Remote, org: str
) -> None:
    """D7, D8: the same headers work; the backend gets the kind "key" and no person."""
    with gateway.control_socket() as control:
        key = token_of(control.call("POST", f"/orgs/{org}/keys", {"name": f"{client} {header}", "role": "viewer"}))
    url = f"{gateway.base_url}/v1/things/lamp"
    assert ask(clients, client, url, presented(key, header)).status == 200
    seen = recorder.last()
    assert key.prefix.startswith("acme_key_")
    told = [seen.only(f"X-Auth-{name}") for name in ("Kind", "Token", "Org", "Role", "User", "Email")]
    assert told == ["key", key.prefix, org, "viewer", "", ""]
    assert ask(clients, client, url, presented(key, header), method="DELETE").status == 403
    with gateway.control_socket() as control:
        control.call("POST", f"/keys/{key.id}/revoke")
    assert ask(clients, client, url, presented(key, header)).status == 401
    assert len(recorder.requests) == 1
