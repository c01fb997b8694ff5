"""Runs schemathesis against a running gateway: the API behaves as the OpenAPI document says.

It calls as an administrator, as a member of an organisation, and without credentials, with requests that the document
allows and with others. A run repeats exactly; PATGATE_SCHEMATHESIS_EXAMPLES makes a longer one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.backends import program
from tests.support.gateway import ROOT, Patgate, Token
from tests.support.process import LOOPBACK, run

LONG = os.environ.get("PATGATE_SCHEMATHESIS_EXAMPLES")
ADMIN, MEMBER = "root@example.org", "ada@example.org"

CONFIGURATION = """\
workers = 1
[generation]
max-examples = {examples}
with-security-parameters = false
deterministic = true
database = "none"
[checks.positive_data_acceptance]
# 422: the document cannot say which roles or users there are.
expected-statuses = ["2xx", 401, 403, 404, 409, 422]
[checks.negative_data_rejection]
# 413: what has too many items is often too large as well.
expected-statuses = [400, 401, 403, 404, 405, 413, 415, 422]
[phases.coverage]
unexpected-methods = ["TRACE"]
[warnings]
enabled = false
"""
SHORT = """\
[[operations]]
# Every model of a body and every kind of a query once: what the others do with theirs is the same code.
include-operation-id-regex = "^(?!(tokens[.](create|list|show|remove_scopes)|keys[.](create|attach)|orgs[.]add|\
members[.]set|invitations[.]create|users[.](add|set_role)|roles[.]set|policy[.]set_of_org|audit[.]list)$)"
phases.coverage.enabled = false
"""
AUTHENTICATION = """\
[auth.openapi.bearer]
bearer = "${PATGATE_TOKEN}"
[auth.openapi.apiKey]
api_key = "${PATGATE_TOKEN}"
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cast:
    """A gateway and the callers' tokens."""

    node: Patgate
    admin: Token
    member: Token
    keep: str


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [f"http://{LOOPBACK}:1"]}},
        "roles": {"admin": ["*:*"], "editor": ["things:*", "patgate.members:list"], "viewer": ["things:read"]},
        "routes": [{"path": "/v1/{entity}/{id}", "upstream": "app"}],
    }
    with Patgate(tmp_path_factory.mktemp("schemathesis"), config) as node:
        with node.control_socket() as control:
            admin = control.call("POST", "/users", {"email": ADMIN, "role": "admin"})
            control.call("POST", "/users", {"email": MEMBER, "role": "viewer"})
            control.call("POST", "/orgs", {"name": "red"})
            member = control.call("POST", "/users", {"email": MEMBER, "role": "editor", "org": "red"})
            tokens = [control.create_token(email) for email in (ADMIN, MEMBER)]
        named = [admin["id"], member["id"], *(name for token in tokens for name in (token.id, token.prefix))]
        yield Cast(
            node=node,
            admin=tokens[0],
            member=tokens[1],
            keep=" ".join([*named, ADMIN, MEMBER, "admin", "editor", "viewer"]),
        )


def explore(cast: Cast, directory: Path, token: Token | None, *options: str) -> None:
    """Run schemathesis once; fail with its output."""
    configuration = CONFIGURATION.format(examples=LONG or 2) + ("" if LONG else SHORT)
    configuration += "" if token is None else AUTHENTICATION
    (directory / "schemathesis.toml").write_text(configuration)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PATGATE_", "PYTHON"))}
    environ |= {
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.backends.schemathesis_hooks",
        "PATGATE_KEEP": cast.keep,
        "PATGATE_TOKEN": "" if token is None else token.value,
    }
    url = f"http://{LOOPBACK}:{cast.node.control_port}/api/v1/openapi.json"
    done = run(
        [program("st"), "--config-file", str(directory / "schemathesis.toml"), "run", url, "--no-color", *options],
        cwd=directory,
        environ=environ,
        seconds=480,
    )
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2_000:]
    assert "Traceback" not in cast.node.log


def test_as_an_administrator(cast: Cast, tmp_path: Path) -> None:
    """Every operation is called and its links are followed; what is created may be deleted again."""
    explore(cast, tmp_path, cast.admin)


def test_as_a_member_of_an_organisation(cast: Cast, tmp_path: Path) -> None:
    """Most requests are refused, and refused as the document says."""
    explore(cast, tmp_path, cast.member, "--phases", "examples,fuzzing", *([] if LONG else ["--max-examples", "1"]))


def test_as_nobody(cast: Cast, tmp_path: Path) -> None:
    """Only the document is served."""
    explore(cast, tmp_path, None, "--phases", "fuzzing", "--max-examples", "1")
