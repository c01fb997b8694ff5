"""nginx with a static list of keys: the least that any proxy with a token check can cost."""

from collections.abc import Iterator
from contextlib import contextmanager

from bench.peers import Serving, Site
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
  listen 127.0.0.1:{port} backlog=4096;
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


class Nginx:
    """Debian's nginx, one worker."""

    name = "nginx"
    does = (
        "nginx looks the Authorization header up in a `map` of the same keys (a hash table read once at start), "
        "removes it, sets one identity header and proxies; it knows no roles, scopes, expiry or revocation."
    )

    @contextmanager
    def serve(self, site: Site) -> Iterator[Serving]:
        port = free_port()
        keys = "\n".join(f'  "Bearer {token}" u{number};' for number, token in enumerate(site.workload.tokens))
        configuration = _CONFIGURATION.format(port=port, origin=site.origin_port, keys=keys)
        with run_nginx(site.directory / "nginx", configuration, port, site.cores.subject) as worker:
            yield Serving(port=port, workers=(worker,))
