"""Ingresses that ask for a verdict on each request.

nginx asks patgate, or an nginx that just answers 200; Envoy asks patgate, over HTTP and over gRPC.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.datasets.tokens import fill
from bench.peers import Serving, Site
from bench.peers.envoy import envoy_asks
from bench.peers.patgate import install, processes, running
from bench.system.machine import pin
from bench.system.nginx import free_port, run_nginx

_NAMES = ("User", "Email", "Org", "Role", "Scopes", "Token", "Token-Name", "Kind")

#: As config/ingress has it, without what only hostile requests need.
_INGRESS = """
upstream verdict {{ server 127.0.0.1:{verdict}; keepalive 64; keepalive_requests 1000000000; }}
upstream origin {{ server 127.0.0.1:{origin}; keepalive 64; keepalive_requests 1000000000; }}
server {{
  listen 127.0.0.1:{port} backlog=4096;
  keepalive_requests 1000000000;
  location /v1/ {{
    auth_request /verdict;
{set}
    proxy_set_header Authorization "";
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header Connection "";
    proxy_http_version 1.1;
    proxy_pass http://origin;
  }}
  location = /verdict {{
    internal;
    proxy_method HEAD;
    proxy_set_header X-Original-Method $request_method;
    proxy_set_header X-Original-URI $request_uri;
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-Host $host;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header Content-Length "";
    proxy_set_header Connection "";
    proxy_pass_request_body off;
    proxy_http_version 1.1;
    proxy_pass http://verdict/nginx;
  }}
}}
"""
_YES = """
server {{ listen 127.0.0.1:{port} backlog=4096; keepalive_requests 1000000000; location / {{ return 200; }} }}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """An nginx and what it asks; where that is patgate, its own port, and Envoys that ask it too."""

    ingress: Serving
    """Its worker is nginx's; ``beside`` has the process that gives the verdicts, as "verdict"."""
    proxied: Serving | None = None
    """The proxy listener of the same patgate, and its worker."""
    called: Serving | None = None
    """The forward-auth listener of the same patgate, without an ingress."""
    over_http: Serving | None = None
    """Envoy that asks the same patgate, which is ``beside`` here too."""
    over_grpc: Serving | None = None


@contextmanager
def asks_patgate(site: Site) -> Iterator[Asking]:
    """The ingresses in front of the backend, with patgate's listeners for them."""
    installation = install(site.directory / "verdicts", site.origin_port, for_ingresses=True)
    assert installation.forward_auth is not None
    assert installation.ext_authz is not None
    fill(installation.data_dir, site.workload.tokens)
    with running(installation) as process:
        found = processes(process.pid)
        pin(found["gateway"], site.cores.subject)
        for pid in (found["authority"], process.pid):
            pin(pid, site.cores.rest)
        beside = {"verdict": found["gateway"]}
        with (
            _ingress(site, "asks-patgate", installation.forward_auth, found["gateway"]) as ingress,
            envoy_asks(site, installation.forward_auth, grpc=False) as over_http,
            envoy_asks(site, installation.ext_authz, grpc=True) as over_grpc,
        ):
            yield Asking(
                ingress=ingress,
                proxied=Serving(port=installation.port, workers=(found["gateway"],)),
                called=Serving(port=installation.forward_auth, workers=(found["gateway"],)),
                over_http=replace(over_http, beside=beside),
                over_grpc=replace(over_grpc, beside=beside),
            )


@contextmanager
def asks_nginx(site: Site) -> Iterator[Asking]:
    """The same nginx with another nginx in patgate's place, which answers 200 to everybody."""
    port = free_port()
    with (
        run_nginx(site.directory / "yes", _YES.format(port=port), port, site.cores.subject) as worker,
        _ingress(site, "asks-nginx", port, worker) as ingress,
    ):
        yield Asking(ingress=ingress)


@contextmanager
def _ingress(site: Site, name: str, verdict: int, asked: int) -> Iterator[Serving]:
    port = free_port()
    directory: Path = site.directory / name
    names = [(f"X-Auth-{each}", f"x_auth_{each.lower().replace('-', '_')}") for each in _NAMES]
    lines = [
        f"    auth_request_set ${variable} $upstream_http_{variable};\n    proxy_set_header {header} ${variable};"
        for header, variable in [*names, ("X-Request-Id", "x_request_id")]
    ]
    http = _INGRESS.format(verdict=verdict, origin=site.origin_port, port=port, set="\n".join(lines))
    with run_nginx(directory, http, port, site.cores.subject) as worker:
        yield Serving(port=port, workers=(worker,), beside={"verdict": asked})
