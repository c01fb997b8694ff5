"""nginx with a static list of keys: the least that any proxy with a token check can cost."""

from collections.abc import Iterator
from contextlib import contextmanager

from bench.peers import Pair, Serving, Site
from bench.system.nginx import free_port, run_nginx

_CONFIGURATION = """
map_hash_max_size 1048576;
map_hash_bucket_size 256;
map $http_authorization $user {{
  default "";
{keys}
}}
upstream origin {{
  server 127.0.0.1:{origin};
  keepalive 64;
  keepalive_requests 1000000000;
}}
server {{
  listen 127.0.0.1:{port}{listens} backlog=4096;
  keepalive_requests 1000000000;
  location /v1/ {{
    if ($user = "") {{ return 401; }}
    proxy_pass http://origin;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $host;
    proxy_set_header Authorization "";
    proxy_set_header X-Auth-User $user;
  }}
}}
"""


_TLS = """
ssl_certificate {certificate};
ssl_certificate_key {key};
ssl_protocols TLSv1.2 TLSv1.3;
"""


class Nginx:
    """Debian's nginx, one worker; with ``pair`` its listener speaks TLS."""

    name = "nginx"
    does = (
        "nginx looks the Authorization header up in a `map` of the same keys (a hash table read once at start), "
        "removes it, sets one identity header and proxies; it knows no roles, scopes, expiry or revocation."
    )

    def __init__(self, pair: Pair | None = None) -> None:
        self._pair = pair

    @contextmanager
    def serve(self, site: Site) -> Iterator[Serving]:
        port, pair = free_port(), self._pair
        keys = "\n".join(f'  "Bearer {token}" u{number};' for number, token in enumerate(site.workload.tokens))
        listens = " ssl" if pair else ""
        configuration = _CONFIGURATION.format(port=port, listens=listens, origin=site.origin_port, keys=keys)
        if pair:
            configuration += _TLS.format(certificate=pair.certificate, key=pair.key)
        directory = site.directory / ("nginx-tls" if pair else "nginx")
        with run_nginx(directory, configuration, port, site.cores.subject) as worker:
            yield Serving(port=port, workers=(worker,), tls=pair is not None)
