"""No header with another meaning can carry an identity, and every claim is stripped."""

from __future__ import annotations

import pytest

from proxy.core.identity import STRIPPED, IdentityNameError, names_from
from proxy.core.request.claims import fold

#: RFC 9110 and 9112, cookies (RFC 6265), and the headers that this gateway itself reads or writes.
RESERVED = (
    "Authorization", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Cookie", "Date", "Expect",
    "Host", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Set-Cookie", "TE",
    "Trailer", "Transfer-Encoding", "Upgrade", "Via", "WWW-Authenticate", "X-API-Key",
)  # fmt: skip
CLAIMS = (
    "X-Request-Id", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Scheme", "X-Forwarded-Ssl", "X-Forwarded-Host",
    "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-By", "X-Forwarded-Prefix", "X-Forwarded-Path",
    "X-Forwarded-Uri", "X-Forwarded-Method", "Forwarded",
    "X-Real-IP", "X-Original-URL", "X-Original-URI", "X-Original-Method", "X-Original-Host", "X-Rewrite-URL",
    "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override",
)  # fmt: skip


@pytest.mark.parametrize("name", RESERVED + CLAIMS)
def test_a_header_with_another_meaning_cannot_carry_an_identity(name: str) -> None:
    for alias in (name, name.lower(), name.replace("-", "_")):
        with pytest.raises(IdentityNameError):
            names_from({"user": alias})


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_of_a_client_is_stripped_under_every_alias(name: str) -> None:
    for alias in (name, name.upper(), name.replace("-", "_"), name.replace("-", ".")):
        assert fold(alias.encode()) in STRIPPED
