"""Cases of threats.md section 4 that are tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

CLAIMS: Final[Mapping[str, tuple[str, ...]]] = {
    "path": (
        *("Script-Name", "Path-Info", "Request-Uri", "X-Script-Name", "X-Original-Url", "X-Original-Uri"),
        *("X-Rewrite-Url", "X-Forwarded-Prefix", "X-Forwarded-Path", "X-Forwarded-Uri", "X-Envoy-Original-Path"),
        *("X-Middleware-Subrequest", "X-Sendfile-Type", "X-Accel-Redirect", "X-Accel-Mapping", "X-Accel-Buffering"),
    ),
    "method": (
        *("Request-Method", "X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Method"),
        "X-Forwarded-Method",
    ),
    "client": (
        *("Forwarded", "X-Forwarded-For", "X-Forwarded-By", "X-Forwarded-Client-Cert", "X-Real-Ip", "X-Client-Ip"),
        *("Client-Ip", "True-Client-Ip", "Cf-Connecting-Ip", "X-Cluster-Client-Ip", "Fastly-Client-Ip"),
    ),
    "transport": (
        *("X-Forwarded-Proto", "X-Forwarded-Protocol", "X-Forwarded-Scheme", "X-Forwarded-Ssl", "X-Forwarded-Host"),
        *("X-Forwarded-Port", "X-Forwarded-Server", "X-Original-Host", "X-Scheme", "X-Host", "Proxy"),
    ),
    "identity": (
        *("X-Auth-User", "X-Auth-Email", "X-Auth-Org", "X-Auth-Role", "X-Auth-Scopes", "X-Auth-Token"),
        *("X-Auth-Token-Name", "X-Auth-Kind", "X-Request-Id", "X-Forwarded-User", "X-Forwarded-Email"),
        *("X-Forwarded-Groups", "X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token", "Remote-User"),
        *("Remote-Groups", "Remote-Name", "Remote-Email", "X-Remote-User", "X-Webauth-User", "X-Auth-Request-User"),
        *("X-Auth-Request-Email", "X-Auth-Request-Groups", "X-Auth-Request-Preferred-Username"),
        *("X-Auth-Request-Access-Token", "X-Goog-Iap-Jwt-Assertion"),
    ),
}
"""Headers by which a client could claim what only a gateway may say, by what they are about."""


def aliases(name: str) -> list[str]:
    """Spellings of a header's name that some backend reads as the same: case, and punctuation for the hyphens."""
    found = [name, name.lower(), name.upper(), name.upper().replace("-", "_"), name.replace("-", "_", 1)]
    found += [name.replace("-", mark) for mark in "_.~!#$%&'*+^`|"]
    return list(dict.fromkeys([*found, "_".join(name.rsplit("-", 1))]))


UPGRADES = {
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "h2c without settings": "Connection: Upgrade\r\nUpgrade: h2c\r\n",
    "h2c that Connection does not name": "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "TLS": "Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
    "anything": "Connection: keep-alive, Upgrade\r\nUpgrade: anything/1\r\n",
    "h2c beside websocket": "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
    "h2c beside websocket in two lines": "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
    "websocket that Connection does not name": "Upgrade: websocket\r\n",
    "websocket that a Connection of other options does not name": "Connection: keep-alive\r\nUpgrade: websocket\r\n",
    "an alias": "Connection: Up_grade\r\nUp_grade: h2c\r\nHTTP2_Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
}

DESYNCHRONISING = {
    "HEAD with a length": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n", 200),
    "HEAD with a coding": ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200),
    "HEAD without either": ("HEAD", b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n", 200),
    "204 with a length": ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\n", 204),
    "204 with a coding": ("GET", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 204),
    "304 with a length": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\nETag: x\r\n\r\n", 304),
    "304 with a coding": ("GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", 304),
    "an interim answer with a length": (
        "GET",
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 41\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        200,
    ),
    "an interim answer with a coding": (
        "GET",
        b"HTTP/1.1 102 Processing\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        200,
    ),
}
