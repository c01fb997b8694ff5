"""Tables of cases for Threat model §4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from proxy.core.identity import PRESETS
from proxy.core.request import claims

KNOWN_MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "X-Original-": ("Url", "Uri", "Path", "Method", "Host", "Proto", "Scheme", "Forwarded-For", "Remote-Addr"),
    "X-Rewrite-": ("Url", "Uri"),
    "X-Middleware-": ("Subrequest", "Subrequest-Id", "Invoke", "Next", "Rewrite", "Redirect", "Override-Headers"),
    "X-Invoke-": ("Path", "Query", "Status", "Output", "Error"),
    "X-Accel-": ("Redirect", "Mapping", "Buffering", "Charset", "Expires", "Limit-Rate", "Internal"),
    "X-Forwarded-": ("Context", "Roles", "Client-Ip", "Tls-Client-Cert", "Tls-Client-Cert-Info"),
    "$WS": ("SN", "SP", "SC", "IS", "PR", "RA", "RH", "RU", "AT", "CC"),
    "X-Auth-Request-": ("User", "Email", "Groups", "Preferred-Username", "Access-Token", "Redirect"),
    "X-Remote-": ("User", "User-Id", "Email", "Name", "Group", "Groups", "Role", "Uid"),
    "X-Webauth-": ("User", "Email", "Name", "Groups", "Role", "Login"),
    "X-Goog-Iap-": ("Jwt-Assertion",),
    "X-Goog-Authenticated-User-": ("Id", "Email"),
    "X-Authentik-": ("Username", "Email", "Name", "Uid", "Groups", "Entitlements", "Jwt"),
    "X-Amzn-Oidc-": ("Identity", "Data", "Accesstoken"),
    "X-Ms-Client-Principal": ("", "-Id", "-Name", "-Idp"),
    "X-Ms-Token-": ("Aad-Id-Token", "Aad-Access-Token", "Aad-Refresh-Token", "Aad-Expires-On"),
    "Cf-Access-": ("Jwt-Assertion", "Authenticated-User-Email", "Client-Id", "Client-Secret", "Token"),
    "X-Consumer-": ("Id", "Custom-Id", "Username", "Groups"),
    "X-Pomerium-": ("Jwt-Assertion", "Claim-Email", "Claim-User", "Claim-Groups", "Claim-Name"),
    "X-Vouch-": ("User", "Success", "Idp-Accesstoken", "Idp-Idtoken"),
    "Tailscale-User-": ("Login", "Name", "Profile-Pic"),
    "Oidc-": ("Claim-Sub", "Claim-Email", "Claim-Name", "Claim-Groups", "Claim-Roles", "Access-Token", "Id-Token"),
    "Shib-": ("Session-Id", "Identity-Provider", "Application-Id", "Authentication-Method"),
    "X-Shib-": ("Session-Id", "Identity-Provider", "Uid", "Mail"),
    "Mellon-": ("Name-Id", "Uid", "Email", "Groups"),
    "Ssl-Client-": ("Cert", "Verify", "S-Dn", "S-Dn-Cn", "I-Dn", "M-Serial"),
    "X-Patgate-": ("Secret", "Status", "Title", "Detail", "Reason", "Decision", "Challenge-1"),
    "X-Ssl-Client-": ("Cert", "Verify", "Dn", "S-Dn", "Cn", "Serial", "Fingerprint"),
}
"""Names without their prefix, for the families of claims, that real gateways send or real applications trust."""

CLAIMS: Final[Mapping[str, tuple[str, ...]]] = {
    kind.value: (
        *names,
        *(family + member for family in claims.FAMILIES[kind] for member in KNOWN_MEMBERS[family]),
        *((name for preset in PRESETS.values() for _, name in preset.headers) if kind == "identity" else ()),
    )
    for kind, names in claims.CLAIMS.items()
} | {"request id": ("X-Request-Id",)}
"""Headers with which a client could claim something that only a gateway may state, by kind."""

FAMILIES: Final[Mapping[str, tuple[str, ...]]] = {
    kind.value: tuple(family + "Anything" for family in families) for kind, families in claims.FAMILIES.items()
}
"""An unknown member of each family of claims."""


def aliases(name: str) -> list[str]:
    """Spellings of a header's name that some backend treats as equal: letter case, and punctuation for hyphens."""
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
