"""Runs the five ingresses with the files of config/ingress/; only addresses and paths are substituted."""

from __future__ import annotations

import getpass
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.support.backends import program
from tests.support.gateway import ROOT, Patgate
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until
from tests.support.rawhttp import Connection

INGRESS = ROOT / "config" / "ingress"
ENVOY_GRPC = "envoy-grpc"

KUBERNETES_HOST = "app.example.org"
"""The host of the routes in config/kubernetes."""

NGINX_MAIN = """\
user {user};
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/nginx.conf;
}}
"""


def substituted(name: str, written: Mapping[str, str], names: Mapping[str, str]) -> str:
    """A file of config/ingress with each text and header name replaced; fails if it lacks one of the texts."""
    text = (INGRESS / name).read_text()
    for there, used in written.items():
        assert there in text, f"config/ingress/{name} does not name {there}"
        text = text.replace(there, used)
    for there, used in names.items():
        text = re.sub(rf"\b{there}\b(?!-)", used, text)
        text = re.sub(rf"\b{there.lower()}\b(?!-)", used.lower(), text)
        text = re.sub(rf"\b(upstream_http_){variable(there)}\b", rf"\1{variable(used)}", text)
    return text


def variable(name: str) -> str:
    return name.lower().replace("-", "_")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingress:
    """A running ingress. ``http2_port`` accepts HTTP/2 without TLS.

    Tests consult the other fields only for what the program cannot do, whatever its file says; docs/ingress.md has each
    of them.
    """

    name: str
    port: int
    http2_port: int
    process: Process
    patterns: bool
    """Whether its file can drop every header whose name has a given prefix."""
    cleans_paths: bool = False
    """Whether it decodes and cleans a path before it asks, so that patgate and the application get the result."""
    encodes_semicolons: bool = False
    """Whether it encodes a ``;`` in a query, for patgate and for the application."""
    own_unavailability: bool = False
    """Whether it answers 502 or 504 with a page of its own if patgate does not answer."""
    passes_trailers: bool = False
    """Whether trailers of a request reach the application."""


@contextmanager
def nginx(directory: Path, *, application: int, forward_auth: int, names: Mapping[str, str] = {}) -> Iterator[Ingress]:
    port, http2_port = free_port(), free_port()
    addresses = {
        "server 127.0.0.1:8082;": f"server {LOOPBACK}:{forward_auth};",
        "server 127.0.0.1:3000;": f"server {LOOPBACK}:{application};",
        "listen 8080;": f"listen {LOOPBACK}:{port}; listen {LOOPBACK}:{http2_port} http2;",
    }
    (directory / "nginx.conf").write_text(substituted("nginx/nginx.conf", addresses, names))
    shutil.copy(INGRESS / "nginx" / "nginx-claims.conf", directory)
    main = directory / "main.conf"
    main.write_text(NGINX_MAIN.format(directory=directory, user=getpass.getuser()))
    argv = [program("nginx"), "-c", str(main), "-p", str(directory), "-e", "stderr"]
    with Process(argv, name="nginx", directory=directory) as process:
        wait_until(lambda: accepts(port), "nginx listening", process=process)
        assert "[warn]" not in process.output, process.tail()
        yield Ingress(name="nginx", port=port, http2_port=http2_port, process=process, patterns=False)


@contextmanager
def caddy(directory: Path, *, application: int, forward_auth: int, names: Mapping[str, str] = {}) -> Iterator[Ingress]:
    port = free_port()
    addresses = {
        "forward_auth 127.0.0.1:8082": f"forward_auth {LOOPBACK}:{forward_auth}",
        "reverse_proxy 127.0.0.1:3000": f"reverse_proxy {LOOPBACK}:{application}",
        "http://:8080": f"http://:{port}",
    }
    site = substituted("caddy/Caddyfile", addresses, names)
    options = "{\n\tadmin off\n\tpersist_config off\n\tservers {\n\t\tprotocols h1 h2c\n\t}\n}\n"
    (directory / "Caddyfile").write_text(options + site)
    environ = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    argv = [program("caddy"), "run", "--config", str(directory / "Caddyfile"), "--adapter", "caddyfile"]
    with Process(argv, name="caddy", directory=directory, environ=environ) as process:
        wait_until(lambda: accepts(port), "Caddy listening", process=process)
        yield Ingress(name="caddy", port=port, http2_port=port, process=process, patterns=True)


@contextmanager
def traefik(
    directory: Path, *, application: int, forward_auth: int, names: Mapping[str, str] = {}
) -> Iterator[Ingress]:
    port, inner = free_port(), free_port()
    addresses = {
        '":8080"': f'"{LOOPBACK}:{port}"',
        '"127.0.0.1:8084"': f'"{LOOPBACK}:{inner}"',
        "/etc/traefik/patgate.yaml": str(directory / "patgate.yaml"),
    }
    (directory / "traefik.yaml").write_text(substituted("traefik/traefik.yaml", addresses, {}))
    addresses = {
        '"http://127.0.0.1:3000"': f'"http://{LOOPBACK}:{application}"',
        '"http://127.0.0.1:8082"': f'"http://{LOOPBACK}:{forward_auth}"',
        "http://127.0.0.1:8084/traefik": f"http://{LOOPBACK}:{inner}/traefik",
    }
    (directory / "patgate.yaml").write_text(substituted("traefik/patgate.yaml", addresses, names))
    with Process(
        [program("traefik"), f"--configFile={directory / 'traefik.yaml'}"], name="traefik", directory=directory
    ) as process:
        wait_until(lambda: accepts(port), "Traefik listening", process=process)
        wait_until(lambda: answers(port), "Traefik's routes", process=process)
        yield Ingress(
            name="traefik",
            port=port,
            http2_port=port,
            process=process,
            patterns=False,
            cleans_paths=True,
            encodes_semicolons=True,
            own_unavailability=True,
        )


def answers(port: int, host: str = "gateway") -> bool:
    """Whether a request without a token gets the 401 of patgate; before its routes are loaded, Traefik says 404."""
    with Connection(port) as connection:
        return connection.request("GET", "/", host=host).status in (401, 403)


@contextmanager
def traefik_in_kubernetes(directory: Path, *, application: int, forward_auth: int) -> Iterator[Ingress]:
    """Traefik with the objects of config/kubernetes/traefik.yaml, which are given to it in a file."""
    objects = list(yaml.safe_load_all((INGRESS.parent / "kubernetes" / "traefik.yaml").read_text()))
    (routes,) = [each["spec"]["routes"] for each in objects if each["kind"] == "IngressRoute"]
    middlewares = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "Middleware"}
    middlewares["patgate"]["forwardAuth"]["address"] = f"http://{LOOPBACK}:{forward_auth}/traefik"
    routers = {
        f"route-{number}": {
            "entryPoints": ["web"],
            "rule": route["match"],
            "middlewares": [each["name"] for each in route["middlewares"]],
            "service": "application",
        }
        for number, route in enumerate(routes)
    }
    service = {"loadBalancer": {"servers": [{"url": f"http://{LOOPBACK}:{application}"}]}}
    http = {"routers": routers, "middlewares": middlewares, "services": {"application": service}}
    (directory / "objects.yaml").write_text(yaml.safe_dump({"http": http}))
    port = free_port()
    web = {"address": f"{LOOPBACK}:{port}", "http": {"aliasHeadersStrategy": "delete"}}
    static = {"entryPoints": {"web": web}, "providers": {"file": {"filename": str(directory / "objects.yaml")}}}
    (directory / "traefik.yaml").write_text(yaml.safe_dump(static))
    argv = [program("traefik"), f"--configFile={directory / 'traefik.yaml'}"]
    with Process(argv, name="traefik-kubernetes", directory=directory) as process:
        wait_until(lambda: accepts(port), "Traefik listening", process=process)
        wait_until(lambda: answers(port, KUBERNETES_HOST), "Traefik's routes", process=process)
        yield Ingress(name="traefik", port=port, http2_port=port, process=process, patterns=False)


@contextmanager
def envoy(directory: Path, *, application: int, forward_auth: int, names: Mapping[str, str] = {}) -> Iterator[Ingress]:
    port = free_port()
    addresses = {
        "address: 0.0.0.0, port_value: 8080": f"address: {LOOPBACK}, port_value: {port}",
        "address: 127.0.0.1, port_value: 3000": f"address: {LOOPBACK}, port_value: {application}",
        "address: 127.0.0.1, port_value: 8082": f"address: {LOOPBACK}, port_value: {forward_auth}",
    }
    (directory / "envoy.yaml").write_text(substituted("envoy/envoy.yaml", addresses, names))
    with _envoy(directory, "envoy", port) as ingress:
        yield ingress


@contextmanager
def envoy_grpc(
    directory: Path, *, application: int, forward_auth: int, names: Mapping[str, str] = {}
) -> Iterator[Ingress]:
    """Envoy that asks over gRPC; ``forward_auth`` is the port of the listener ``ext_authz``.

    Patgate says which headers it sets, so the file needs no other ``names``.
    """
    del names
    port = free_port()
    addresses = {
        "address: 0.0.0.0, port_value: 8080": f"address: {LOOPBACK}, port_value: {port}",
        "address: 127.0.0.1, port_value: 3000": f"address: {LOOPBACK}, port_value: {application}",
        "address: 127.0.0.1, port_value: 8084": f"address: {LOOPBACK}, port_value: {forward_auth}",
    }
    (directory / "envoy.yaml").write_text(substituted("envoy/envoy-grpc.yaml", addresses, {}))
    with _envoy(directory, ENVOY_GRPC, port) as ingress:
        yield ingress


@contextmanager
def _envoy(directory: Path, name: str, port: int) -> Iterator[Ingress]:
    argv = [program("envoy"), "--config-path", str(directory / "envoy.yaml"), "--concurrency", "1"]
    argv += ["--disable-hot-restart", "--log-level", "warning"]
    with Process(argv, name=name, directory=directory) as process:
        wait_until(lambda: accepts(port), "Envoy listening", process=process)
        yield Ingress(name=name, port=port, http2_port=port, process=process, patterns=True)


@contextmanager
def haproxy(
    directory: Path,
    *,
    application: int,
    forward_auth: int,
    names: Mapping[str, str] = {},
    script: Callable[[str], str] = str,
) -> Iterator[Ingress]:
    """HAProxy; ``script`` may change patgate.lua."""
    port = free_port()
    addresses = {
        "bind :8080": f"bind {LOOPBACK}:{port}",
        "server application 127.0.0.1:3000": f"server application {LOOPBACK}:{application}",
        "server patgate 127.0.0.1:8082": f"server patgate {LOOPBACK}:{forward_auth}",
        "/etc/haproxy/patgate.lua": str(directory / "patgate.lua"),
        "abns@patgate": f"abns@patgate-{port}",
    }
    (directory / "haproxy.cfg").write_text(substituted("haproxy/haproxy.cfg", addresses, {}))
    address = {"abns@patgate": f"abns@patgate-{port}"}
    (directory / "patgate.lua").write_text(script(substituted("haproxy/patgate.lua", address, names)))
    argv = [program("haproxy"), "-db", "-f", str(directory / "haproxy.cfg")]
    with Process(argv, name="haproxy", directory=directory) as process:
        wait_until(lambda: accepts(port), "HAProxy listening", process=process)
        assert "[WARNING]" not in process.output, process.tail()
        yield Ingress(name="haproxy", port=port, http2_port=port, process=process, patterns=True, passes_trailers=True)


INGRESSES: Mapping[str, Callable[..., AbstractContextManager[Ingress]]] = {
    "nginx": nginx,
    "caddy": caddy,
    "traefik": traefik,
    "envoy": envoy,
    ENVOY_GRPC: envoy_grpc,
    "haproxy": haproxy,
}
"""Every ingress that config/ingress has files for, Envoy by both ways to ask.

The function that starts one takes a directory for it, the ports of the application and of the listener that it queries,
and other names for identity headers.
"""


def asked_port(name: str, node: Patgate) -> int:
    """The port of ``node`` that this ingress asks."""
    return node.ext_authz_port if name == ENVOY_GRPC else node.forward_auth_port
