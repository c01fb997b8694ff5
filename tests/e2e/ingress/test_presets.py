"""The ingress files with the header names of another identity preset, changed only where docs/ingress.md says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.ingress.matrix import Row
from tests.support.gateway import Patgate
from tests.support.ingress import INGRESSES, Ingress, asked_port
from tests.support.plugin import EDITOR, ROLES, ROUTES
from tests.support.pool import Pool
from tests.support.rawhttp import Connection
from tests.support.recorder import Recorder

PRESETS = {
    "oauth2-proxy": {
        "X-Auth-User": "X-Forwarded-User",
        "X-Auth-Email": "X-Forwarded-Email",
        "X-Auth-Role": "X-Forwarded-Groups",
        "X-Auth-Org": "X-Forwarded-Preferred-Username",
    },
    "remote-user": {
        "X-Auth-User": "Remote-User",
        "X-Auth-Email": "Remote-Email",
        "X-Auth-Role": "Remote-Groups",
        "X-Auth-Org": "Remote-Name",
    },
}


@pytest.fixture(scope="module", params=PRESETS)
def preset(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def node(preset: str, gateways: Pool) -> Iterator[Patgate]:
    config = {
        "workers": 1,
        "identity": {"preset": preset},
        "listen": {"forward_auth": {"trusted": ["127.0.0.1/32"]}, "ext_authz": {"trusted": ["127.0.0.1/32"]}},
        "upstreams": {"app": {"servers": ["http://127.0.0.1:9"]}},
        "roles": ROLES,
        "routes": ROUTES,
    }
    with gateways.lend(config) as running:
        running.add_user(EDITOR, "editor")
        yield running


@pytest.fixture(scope="module", params=INGRESSES)
def ingress(
    request: pytest.FixtureRequest,
    preset: str,
    tmp_path_factory: pytest.TempPathFactory,
    node: Patgate,
    application: Recorder,
) -> Iterator[Ingress]:
    directory = tmp_path_factory.mktemp(request.param)
    ports = {"application": application.port, "forward_auth": asked_port(request.param, node)}
    with INGRESSES[request.param](directory, **ports, names=PRESETS[preset]) as running:
        yield running


@pytest.mark.row(Row.PRESETS)
def test_the_application_gets_the_presets_names_from_patgate_and_from_nobody_else(
    preset: str, ingress: Ingress, behind: Recorder, node: Patgate
) -> None:
    names = PRESETS[preset]
    claims = {name: "mallory" for name in names.values()} | {"Connection": ", ".join(names.values())}
    token = node.token(EDITOR, name=ingress.name)
    with Connection(ingress.port) as connection:
        assert connection.request("GET", "/v1/things/1", headers=token.bearer | claims).status == 200
        seen = behind.last()
        assert seen.only(names["X-Auth-Email"]) == EDITOR
        assert seen.only(names["X-Auth-Role"]) == "editor"
        assert seen.only(names["X-Auth-User"])
        assert connection.request("GET", "/healthz", headers=claims).status == 200
    assert all(behind.last().all(name) in ([], [b""]) for name in names.values())
    assert not any(b"mallory" in data for data in behind.received)
