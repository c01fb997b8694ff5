"""HAProxy with a map of keys."""

from collections.abc import Iterator
from contextlib import contextmanager

from bench.load.workload import all_paths
from bench.peers import Serving, Site
from bench.system.daemon import run_daemon
from bench.system.machine import require
from bench.system.nginx import free_port

_CONFIGURATION = """\
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option http-keep-alive
  http-reuse always
frontend gateway
  bind 127.0.0.1:{port} backlog 4096
  http-request set-var(txn.user) http_auth_bearer,map_str({keys})
  http-request deny deny_status 401 unless {{ var(txn.user) -m found }}
  http-request del-header Authorization
  http-request set-header X-Auth-User %[var(txn.user)]
  default_backend origin
backend origin
  server origin 127.0.0.1:{origin}
"""


class Haproxy:
    """Debian's HAProxy, one process with one thread."""

    name = "haproxy"
    does = (
        "HAProxy looks the bearer token up in a `map_str` of the same keys (a balanced tree), removes the "
        "header, sets one identity header and proxies (`nbthread 1`, `http-reuse always`)."
    )

    @contextmanager
    def serve(self, site: Site) -> Iterator[Serving]:
        directory, port = site.directory / self.name, free_port()
        directory.mkdir()
        keys = directory / "keys.map"
        keys.write_text("".join(f"{token} u{number}\n" for number, token in enumerate(site.workload.tokens)))
        configuration = directory / "haproxy.cfg"
        configuration.write_text(_CONFIGURATION.format(port=port, origin=site.origin_port, keys=keys))
        with run_daemon(
            [require("haproxy", "haproxy"), "-db", "-f", str(configuration)],
            directory,
            port=port,
            path=all_paths()[0],
            token=site.workload.tokens[0],
            cores=site.cores.subject,
        ) as pid:
            yield Serving(port=port, workers=(pid,))
