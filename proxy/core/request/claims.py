"""Claims: header fields with which a client could make a backend believe something that patgate has not checked.

1. This table is the only one. Every field in it, under every alias, is dropped on every route, trailers included.
2. Names are compared folded: letter case is ignored, and all punctuation of a field name (``_``, ``.``, ``-`` and the
   rest of RFC 9110's tchar) counts as one character. CGI and WSGI fold ``-`` and ``_``; other servers fold more.
3. A name in ``FAMILIES`` is a prefix: it covers every field that begins with it.
4. Only the kinds in ``FROM_TRUSTED`` may come from a trusted peer, which knows the client's address and transport. No
   proxy in front of patgate can know a path, a method or an identity that patgate has not checked.
5. Identity headers that patgate itself can send are in ``identity.PRESETS`` and are dropped in the same way.

Sources: RFC 3875 section 4.1 (CGI variables, which gunicorn also takes as ``SCRIPT_NAME`` and ``PATH_INFO``), RFC 7239,
RFC 9440, and the documentation of the proxies and frameworks that write or trust each field.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class ClaimKind(StrEnum):
    """What a field claims."""

    PATH = "path"
    METHOD = "method"
    CLIENT = "client"
    TRANSPORT = "transport"
    IDENTITY = "identity"


CLAIMS: Final[Mapping[ClaimKind, tuple[str, ...]]] = MappingProxyType(
    {
        ClaimKind.PATH: (
            "Script-Name", "Path-Info", "Path-Translated", "Request-Uri", "Document-Uri", "Document-Root",
            "Query-String", "Script-Filename", "Script-Uri", "Script-Url", "X-Script-Name", "X-Forwarded-Prefix",
            "X-Forwarded-Path", "X-Forwarded-Uri", "X-Envoy-Original-Path", "X-Replaced-Path", "X-Matched-Path",
            "X-Original-Url", "X-Original-Uri", "X-Rewrite-Url", "X-Waws-Unencoded-Url", "X-Sendfile",
            "X-Sendfile-Type", "X-Now-Route-Matches",
        ),
        ClaimKind.METHOD: (
            "Request-Method", "X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Method",
            "Method-Override", "X-Original-Method", "X-Forwarded-Method",
        ),
        ClaimKind.CLIENT: (
            "Forwarded", "Forwarded-For", "X-Forwarded", "X-Forwarded-For", "X-Forwarded-By",
            "X-Original-Forwarded-For", "X-Real-Ip", "True-Client-Ip", "Client-Ip", "X-Client-Ip",
            "X-Cluster-Client-Ip", "Fastly-Client-Ip", "Fly-Client-Ip", "Cf-Connecting-Ip", "Cf-Connecting-Ipv6",
            "Cf-Pseudo-Ipv4", "Cloudfront-Viewer-Address", "Do-Connecting-Ip", "Incap-Client-Ip", "Proxy-Client-Ip",
            "Wl-Proxy-Client-Ip", "X-Appengine-User-Ip", "X-Appengine-Remote-Addr", "X-Azure-Clientip",
            "X-Azure-Socketip", "X-Envoy-External-Address", "X-Envoy-Internal", "X-Nf-Client-Connection-Ip",
            "X-Originating-Ip", "X-Remote-Addr", "X-Remote-Ip", "X-Vercel-Forwarded-For", "Remote-Addr",
            "Remote-Host", "Remote-Port",
        ),
        ClaimKind.TRANSPORT: (
            "Proxy", "X-Forwarded-Proto", "X-Forwarded-Protocol", "X-Forwarded-Scheme", "X-Forwarded-Ssl",
            "X-Forwarded-Https", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Server", "X-Scheme",
            "X-Url-Scheme", "X-Host", "X-Host-Override", "X-Http-Host-Override", "X-Original-Host",
            "X-Original-Proto", "Front-End-Https", "Cf-Visitor", "Cloudfront-Forwarded-Proto", "X-Arr-Ssl",
            "X-Proxied-Https", "Proxy-Ssl-Id", "Wl-Proxy-Ssl", "Https", "Request-Scheme", "Gateway-Interface",
            "Server-Name", "Server-Addr", "Server-Port", "Server-Protocol", "Server-Software",
        ),
        ClaimKind.IDENTITY: (
            "Auth-Type", "Remote-Ident", "X-Forwarded-Access-Token", "X-Forwarded-Client-Cert", "Client-Cert",
            "Client-Cert-Chain", "Proxy-Auth-Cert", "Wl-Proxy-Client-Cert", "X-Client-Cert", "X-Client-Dn",
            "X-Client-Verify", "X-Arr-Clientcert", "X-Authenticated-User", "X-Authenticated-Userid",
            "X-Authenticated-Email", "X-Authenticated-Groups", "X-Anonymous-Consumer", "X-Credential-Identifier",
            "X-Userinfo", "X-Apigateway-Api-Userinfo", "X-Endpoint-Api-Userinfo",
        ),
    }
)  # fmt: skip
"""Whole names by kind of claim. ``Proxy`` becomes ``HTTP_PROXY`` in CGI (httpoxy, CVE-2016-5385)."""

FAMILIES: Final[Mapping[ClaimKind, tuple[str, ...]]] = MappingProxyType(
    {
        ClaimKind.PATH: ("X-Original-", "X-Rewrite-", "X-Middleware-", "X-Invoke-", "X-Accel-"),
        ClaimKind.METHOD: (),
        ClaimKind.CLIENT: ("X-Forwarded-",),
        ClaimKind.TRANSPORT: ("$WS",),
        ClaimKind.IDENTITY: (
            "X-Auth-Request-", "X-Remote-", "X-Webauth-", "X-Goog-Iap-", "X-Goog-Authenticated-User-", "X-Authentik-",
            "X-Amzn-Oidc-", "X-Ms-Client-Principal", "X-Ms-Token-", "Cf-Access-", "X-Consumer-", "X-Pomerium-",
            "X-Vouch-", "Tailscale-User-", "Oidc-", "Shib-", "X-Shib-", "Mellon-", "Ssl-Client-", "X-Ssl-Client-",
            "X-Patgate-",
        ),
    }
)  # fmt: skip
"""Name prefixes by kind of claim. ``X-Patgate-…`` passes only between patgate and an ingress that asks it. IBM's
web server plug-in describes a request in ``$WS…`` fields: by default, Open Liberty trusts them from every peer and
selects the virtual host by them instead of ``Host``."""

FROM_TRUSTED: Final = frozenset((ClaimKind.CLIENT, ClaimKind.TRANSPORT))
"""The kinds that an operator may accept from a trusted peer (``listen.proxy.trusted_claims``)."""

_NEVER_BELIEVED: Final = frozenset(
    (b"proxy", b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
)
"""No proxy has a reason to send ``Proxy``. patgate itself builds the others from the fields of a trusted peer."""

_FOLD: Final = bytes(
    ord("-") if chr(byte) in "!#$%&'*+.^_`|~" else byte + 32 if 65 <= byte <= 90 else byte for byte in range(256)
)


def fold(name: bytes) -> bytes:
    """A field name in folded form: lower case, with ``_``, ``.`` and all other punctuation as ``-``."""
    return name.translate(_FOLD)


def _folded(names: Mapping[ClaimKind, tuple[str, ...]]) -> dict[bytes, ClaimKind]:
    return {fold(name.encode("ascii")): kind for kind, of_kind in names.items() for name in of_kind}


KIND_OF: Final[Mapping[bytes, ClaimKind]] = MappingProxyType(_folded(CLAIMS))
"""The kind of each folded whole name."""

FAMILY_NAMES: Final[tuple[bytes, ...]] = tuple(sorted(_folded(FAMILIES)))
"""The folded prefixes: a name that begins with one of these is also a claim."""


def may_be_believed(name: str) -> bool:
    """Whether an operator may pass this field on from trusted peers: a whole name of a kind in ``FROM_TRUSTED``."""
    folded = fold(name.encode("ascii", "replace"))
    return KIND_OF.get(folded) in FROM_TRUSTED and folded not in _NEVER_BELIEVED
