"""Runs nginx and Caddy with the files of config/ingress/; only the ports are substituted."""

from __future__ import annotations

import getpass
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.backends import program
from tests.support.gateway import ROOT
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until

INGRESS = ROOT / "config" / "ingress"

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
    include {directory}/site.conf;
}}
"""


def substituted(name: str, addresses: Mapping[str, str], names: Mapping[str, str]) -> str:
    """A file of config/ingress with each address and header name replaced; fails if it lacks one of them."""
    text = (INGRESS / name).read_text()
    for written, used in addresses.items():
        assert written in text, f"config/ingress/{name} does not name {written}"
        text = text.replace(written, used)
    for written, used in names.items():
        assert written in text, f"config/ingress/{name} does not name {written}"
        text = re.sub(rf"\b{written}\b(?!-)", used, text)
        text = re.sub(rf"\b(upstream_http_){variable(written)}\b", rf"\1{variable(used)}", text)
    return text


def variable(name: str) -> str:
    return name.lower().replace("-", "_")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingress:
    """A running ingress. ``http2_port`` accepts HTTP/2 without TLS.

    ``whole_refusals`` means that the client gets our refusal unchanged; otherwise every status but 401 and 403 becomes
    403.
    """

    name: str
    port: int
    http2_port: int
    whole_refusals: bool
    patterns: bool
    """Whether its file can drop every header whose name has a given prefix."""

    def refuses_with(self, status: int) -> int:
        """The status that a client sees when our verdict has this status."""
        return status if self.whole_refusals or status in (401, 403) else 403


@contextmanager
def nginx(directory: Path, *, application: int, forward_auth: int, names: Mapping[str, str] = {}) -> Iterator[Ingress]:
    port, http2_port = free_port(), free_port()
    site = substituted(
        "nginx.conf",
        {
            "server 127.0.0.1:8082;": f"server {LOOPBACK}:{forward_auth};",
            "server 127.0.0.1:3000;": f"server {LOOPBACK}:{application};",
            "listen 8080;": f"listen {LOOPBACK}:{port}; listen {LOOPBACK}:{http2_port} http2;",
        },
        names,
    )
    (directory / "site.conf").write_text(site)
    shutil.copy(INGRESS / "nginx-claims.conf", directory)
    (directory / "nginx.conf").write_text(NGINX_MAIN.format(directory=directory, user=getpass.getuser()))
    argv = [program("nginx"), "-c", str(directory / "nginx.conf"), "-p", str(directory), "-e", "stderr"]
    with Process(argv, name="nginx", directory=directory) as process:
        wait_until(lambda: accepts(port), "nginx listening", process=process)
        assert "[warn]" not in process.output, process.tail()
        yield Ingress(name="nginx", port=port, http2_port=http2_port, whole_refusals=False, patterns=False)


@contextmanager
def caddy(directory: Path, *, application: int, forward_auth: int, names: Mapping[str, str] = {}) -> Iterator[Ingress]:
    port = free_port()
    site = substituted(
        "Caddyfile",
        {
            "forward_auth 127.0.0.1:8082": f"forward_auth {LOOPBACK}:{forward_auth}",
            "reverse_proxy 127.0.0.1:3000": f"reverse_proxy {LOOPBACK}:{application}",
            "http://:8080": f"http://:{port}",
        },
        names,
    )
    options = "{\n\tadmin off\n\tpersist_config off\n\tservers {\n\t\tprotocols h1 h2c\n\t}\n}\n"
    (directory / "Caddyfile").write_text(options + site)
    environ = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    argv = [program("caddy"), "run", "--config", str(directory / "Caddyfile"), "--adapter", "caddyfile"]
    with Process(argv, name="caddy", directory=directory, environ=environ) as process:
        wait_until(lambda: accepts(port), "Caddy listening", process=process)
        yield Ingress(name="caddy", port=port, http2_port=port, whole_refusals=True, patterns=True)


INGRESSES: Mapping[str, Callable[..., AbstractContextManager[Ingress]]] = {"nginx": nginx, "caddy": caddy}
"""Every ingress that config/ingress has a file for.

The function that starts one takes a directory for it, the ports of the application and of the listener that it queries,
and other names for identity headers.
"""
