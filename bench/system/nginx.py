"""Running Debian's nginx with one worker, as backend or as peer."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.system.machine import children, pin, require, until

_MAIN = """
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  {http}
}}
"""


def free_port() -> int:
    """A port of 127.0.0.1 that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listening(port: int) -> bool:
    """Whether a connection to 127.0.0.1:``port`` is accepted."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def run_nginx(directory: Path, http: str, port: int, cores: frozenset[int]) -> Iterator[int]:
    """Run nginx with ``http`` inside its http block; gives the pid of its one worker once ``port`` answers."""
    directory.mkdir()
    configuration = directory / "nginx.conf"
    # As root nginx gives its worker to "nobody", who cannot enter the private directory of the run.
    user = "user root root;" if os.geteuid() == 0 else ""
    configuration.write_text(_MAIN.format(user=user, directory=directory, http=http))
    command = [
        require("nginx", "nginx"),
        "-p",
        str(directory),
        "-e",
        str(directory / "error.log"),
        "-c",
        str(configuration),
    ]
    process = subprocess.Popen(command)
    try:
        until(
            lambda: process.poll() is not None or (bool(children(process.pid)) and listening(port)),
            "nginx accepts connections",
        )
        (worker,) = children(process.pid)
        pin(worker, cores)
        yield worker
    finally:
        process.terminate()
        process.wait(10)
