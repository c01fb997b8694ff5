"""The backend that every peer proxies to: an nginx that answers with a constant from its configuration.

Each answer repeats the request's traceparent, so that no two heads are equal and caching them gains nothing.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load.wrk import ask
from bench.system.machine import Cores
from bench.system.nginx import free_port, run_nginx

BODY = b'{"id":"4f1f2c3d","name":"a thing","state":"active","updated":"2026-01-01T00:00:00Z"}'
WHOAMI = "/v1/things/whoami"
"""Answered with what the gateway sent about the caller: the identity header, a bar, the Authorization header."""
_STATUS = "/-/counts"

_CONFIGURATION = """
server {{
  listen 127.0.0.1:{port} backlog=4096;
  keepalive_requests 1000000000;
  location = {status} {{ stub_status; }}
  location = {whoami} {{ default_type text/plain; return 200 "$http_x_auth_user|$http_authorization"; }}
  location / {{ default_type application/json; add_header X-Trace $http_traceparent; return 200 '{body}'; }}
}}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The running backend."""

    port: int

    def counts(self) -> tuple[int, int]:
        """Connections accepted and requests received until now, including those of this call."""
        text = ask(self.port, _STATUS)[1].decode()
        found = re.search(r"\n\s*(\d+)\s+(\d+)\s+(\d+)", text)
        assert found is not None, "stub_status has had this form since nginx 0.1"
        return int(found.group(1)), int(found.group(3))


@contextmanager
def run_origin(directory: Path, cores: Cores) -> Iterator[Origin]:
    """Run the backend on the cores that are not the subject's."""
    port = free_port()
    configuration = _CONFIGURATION.format(port=port, status=_STATUS, whoami=WHOAMI, body=BODY.decode())
    with run_nginx(directory / "origin", configuration, port, cores.rest):
        yield Origin(port=port)
