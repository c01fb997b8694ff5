"""The files of config/ingress and config/kubernetes agree with the code about headers that only a gateway may set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.core.request.claims import fold
from proxy.core.request.second_targets import JUDGED, UNJUDGED
from tests.support import ingress_places
from tests.support.ingress_claims import CONFIG, OURS, WRITERS, current

KUBERNETES = sorted((CONFIG / "kubernetes").glob("*.yaml"))


@pytest.mark.parametrize("name", WRITERS)
def test_the_list_of_claims_in_a_file_is_that_of_the_code(name: str) -> None:
    """``make ingress`` writes it."""
    assert (CONFIG / name).read_text() == current(name)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("nginx/nginx.conf", r"auth_request_set \$patgate_\w+ +\$upstream_http_(x_(?:auth|request)\w+);"),
        ("nginx/nginx.conf", r"proxy_set_header (X-(?:Auth|Request)[\w-]+) +\$patgate_"),
        ("caddy/Caddyfile", r"(?m)(?<=copy_headers )(.+)$"),
        ("traefik/patgate.yaml", r"(?m)^ {10}- (X-[\w-]+)$"),
        ("envoy/envoy.yaml", r"- exact: (x-(?:auth|request)[\w-]+)"),
        ("haproxy/patgate.lua", r'"(X-(?:Auth|Request)[\w-]+)"'),
    ],
)
def test_a_file_replaces_every_identity_header(name: str, pattern: str) -> None:
    found = " ".join(re.findall(pattern, (CONFIG / "ingress" / name).read_text())).split()
    assert {each.lower().replace("_", "-") for each in found} == {each.lower() for each in OURS}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def test_there_is_a_snippet_for_every_kind_of_ingress() -> None:
    assert [path.stem for path in KUBERNETES] == [
        *("envoy-gateway-grpc", "envoy-gateway", "gateway-api", "ingress-nginx", "nginx-gateway-fabric", "traefik"),
    ]


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_a_snippet_for_kubernetes_is_made_of_objects(path: Path) -> None:
    found = documents(path)
    assert found
    for document in found:
        assert {"apiVersion", "kind", "metadata"} <= document.keys()
        assert ("spec" in document) != ("data" in document)
        assert document["metadata"]["name"]


def texts(node: Any) -> list[str]:
    """Every text in a document, without the keys."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in texts(value)]
    if isinstance(node, list):
        return [text for value in node for text in texts(value)]
    return [str(node)]


BY_HTTP = [path for path in KUBERNETES if path.stem != "envoy-gateway-grpc"]
"""Over gRPC, patgate itself names the headers."""


@pytest.mark.parametrize("path", BY_HTTP, ids=lambda path: path.stem)
def test_a_snippet_for_kubernetes_returns_every_identity_header(path: Path) -> None:
    found = [text for document in documents(path) for text in texts(document)]
    names = {name for text in found for name in re.split(r",? +", text) if name.startswith(("X-Auth-", "X-Request-"))}
    assert names == {*OURS}


def test_ingress_nginx_asks_with_get_and_never_caches_a_verdict() -> None:
    document, controller, _ = documents(CONFIG / "kubernetes" / "ingress-nginx.yaml")
    annotations = document["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert annotations[prefix + "auth-method"] == "GET"
    assert not any("cache" in name for name in annotations)
    assert controller["data"]["enable-underscores-in-headers"] == "false"


def values_of(node: Any, key: str) -> list[Any]:
    """Every value of ``key`` in a document, at any depth."""
    if isinstance(node, dict):
        found = [node[key]] if key in node else []
        return found + [value for each in node.values() for value in values_of(each, key)]
    return [value for each in node for value in values_of(each, key)] if isinstance(node, list) else []


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("envoy-gateway", "headersToExtAuth"),
        ("gateway-api", "allowedHeaders"),
        ("nginx-gateway-fabric", "allowedHeaders"),
    ],
)
def test_patgate_gets_every_header_that_names_a_second_target(name: str, key: str) -> None:
    """An ingress that sends only listed headers forwards the others to the application, unjudged."""
    found = documents(CONFIG / "kubernetes" / f"{name}.yaml")
    (listed,) = [value for document in found for value in values_of(document, key)]
    assert {fold(each.encode()) for each in listed} >= {*JUDGED, *(fold(each.encode()) for each in UNJUDGED)}
    assert len(listed) <= 64  # the Gateway API's limit
    assert len({each.lower() for each in listed}) == len(listed)
    if name != "nginx-gateway-fabric":
        # Without it, the address of every client would be the gateway's.
        assert "X-Forwarded-For" in listed


# Over gRPC patgate itself names the headers that the application does not get.
LISTING = [path.stem for path in KUBERNETES if path.stem != "envoy-gateway-grpc"]
CREDENTIALS = {"Authorization", "X-Api-Key", "Proxy-Authorization"}


def removed(name: str, text: str) -> set[str]:
    """The headers of the credential that the application does not get, by the Kubernetes objects in ``text``."""
    found = [document for document in yaml.safe_load_all(text) if document]
    if name == "ingress-nginx":
        (listed,) = [one["data"] for one in found if one["metadata"]["name"] == "patgate-claims"]
    elif name == "traefik":
        (credentials,) = [one for one in found if one["metadata"]["name"] == "patgate-credentials"]
        listed = credentials["spec"]["headers"]["customRequestHeaders"]
    else:
        (modifier,) = [one for document in found for one in values_of(document, "requestHeaderModifier")]
        return {*modifier["remove"]}
    return {each for each, value in listed.items() if value == "" and each in {*CREDENTIALS, ingress_places.HEADER}}


@pytest.mark.parametrize("name", LISTING)
def test_a_snippet_for_kubernetes_removes_the_credential_before_the_application(name: str) -> None:
    assert removed(name, (CONFIG / "kubernetes" / f"{name}.yaml").read_text()) == CREDENTIALS


def test_the_page_says_for_every_file_where_a_credential_in_another_header_is_removed() -> None:
    gateways = {f"kubernetes/{path.name}" for path in KUBERNETES}
    ingresses = {
        f"ingress/{path.parent.name}/{path.name}"
        for path in (CONFIG / "ingress").glob("*/*")
        if "x-api-key" in path.read_text().lower()
    }
    assert {*ingress_places.rows()} == {*gateways, *ingresses, "ingress/envoy/envoy-grpc.yaml"}


@pytest.mark.parametrize("name", LISTING)
def test_with_the_addition_of_the_page_a_snippet_removes_another_credential_and_shows_it_to_patgate(name: str) -> None:
    said = ingress_places.rows()[f"kubernetes/{name}.yaml"]
    text = ingress_places.changed(f"kubernetes/{name}.yaml", said)
    assert removed(name, text) == {*CREDENTIALS, ingress_places.HEADER}
    found = list(yaml.safe_load_all(text))
    listed = [one for key in ("headersToExtAuth", "allowedHeaders") for one in values_of(found, key)]
    assert len(listed) == said.count(" and in ")
    for names in listed:
        # Authorization is always sent. The rest must be named: every place of the default, and the added one.
        assert {"x-api-key", "cookie", "sec-websocket-protocol", ingress_places.HEADER.lower()} <= {
            each.lower() for each in names
        }


@pytest.mark.parametrize("name", ["envoy-gateway", "envoy-gateway-grpc"])
def test_envoy_gateway_fails_closed(name: str) -> None:
    (policy,) = (
        document
        for document in documents(CONFIG / "kubernetes" / f"{name}.yaml")
        if document["kind"] == "SecurityPolicy"
    )
    assert policy["spec"]["extAuth"]["failOpen"] is False


def test_envoy_gateway_differs_over_grpc_only_in_what_it_need_not_list() -> None:
    """Without a list it sends every header, and patgate names those to replace and to remove."""
    names = ("envoy-gateway", "envoy-gateway-grpc")
    by_http, by_grpc = (documents(CONFIG / "kubernetes" / f"{name}.yaml") for name in names)
    (own,) = (document["spec"]["extAuth"] for document in by_grpc if document["kind"] == "SecurityPolicy")
    assert own == {"failOpen": False, "grpc": {"backendRefs": [{"name": "patgate", "port": 8084}]}}
    kinds = ("ClientTrafficPolicy",)
    assert [each for each in by_grpc if each["kind"] in kinds] == [each for each in by_http if each["kind"] in kinds]


def test_traefik_does_not_trust_the_clients_headers() -> None:
    middlewares = [
        document["spec"]["forwardAuth"]
        for document in documents(CONFIG / "kubernetes" / "traefik.yaml")
        if document["kind"] == "Middleware" and "forwardAuth" in document["spec"]
    ]
    assert [middleware["trustForwardHeader"] for middleware in middlewares] == [False]
