"""nginx and Caddy run with the files of config/ingress/, ports substituted and nothing else."""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


def substituted(name: str, addresses: Mapping[str, str]) -> str:
    """A file of config/ingress with each address replaced; fails when it does not name one of them."""
    text = (INGRESS / name).read_text()
    for written, used in addresses.items():
        assert written in text, f"config/ingress/{name} does not name {written}"
        text = text.replace(written, used)
    return text


@contextmanager
def nginx(directory: Path, *, application: int, forward_auth: int) -> Iterator[int]:
    """The port of a running nginx."""
    port = free_port()
    site = substituted(
        "nginx.conf",
        {
            "server 127.0.0.1:8082;": f"server {LOOPBACK}:{forward_auth};",
            "server 127.0.0.1:3000;": f"server {LOOPBACK}:{application};",
            "listen 8080;": f"listen {LOOPBACK}:{port};",
        },
    )
    (directory / "site.conf").write_text(site)
    (directory / "nginx.conf").write_text(NGINX_MAIN.format(directory=directory, user=getpass.getuser()))
    argv = [program("nginx"), "-c", str(directory / "nginx.conf"), "-p", str(directory), "-e", "stderr"]
    with Process(argv, name="nginx", directory=directory) as process:
        wait_until(lambda: accepts(port), "nginx listening", process=process)
        yield port


@contextmanager
def caddy(directory: Path, *, application: int, forward_auth: int) -> Iterator[int]:
    """The port of a running Caddy."""
    port = free_port()
    site = substituted(
        "Caddyfile",
        {
            "forward_auth 127.0.0.1:8082": f"forward_auth {LOOPBACK}:{forward_auth}",
            "reverse_proxy 127.0.0.1:3000": f"reverse_proxy {LOOPBACK}:{application}",
            "http://:8080": f"http://:{port}",
        },
    )
    (directory / "Caddyfile").write_text("{\n\tadmin off\n\tpersist_config off\n}\n" + site)
    environ = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    argv = [program("caddy"), "run", "--config", str(directory / "Caddyfile"), "--adapter", "caddyfile"]
    with Process(argv, name="caddy", directory=directory, environ=environ) as process:
        wait_until(lambda: accepts(port), "Caddy listening", process=process)
        yield port
