"""Authentication of API requests on TCP: from the token in the headers to the actor that the services use.

Rules of this module:
1. A credential is a token in ``Authorization: Bearer`` or in ``X-API-Key``, once and in one of them. Nothing that a
   browser sends by itself is accepted: no Basic, no cookie.
2. The authority's resolver decides whether the token is genuine and what it may do, as for the gateway; there is no
   second implementation.
3. Every refused token gets the same response; the reason is in the log only.
4. Failures are counted by address. Over the limit nothing is hashed for that address, but a token that its stored
   digest proves is still accepted: it is not responsible for other clients behind the same ingress.
5. The actor has the credential as it was verified: the services check it again in the transaction.
6. A token with IP ranges is judged by the peer's address: this listener trusts no proxy.
"""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from proxy.control.problems import ProblemKind, RequestRefused
from proxy.control.runtime import ControlRuntime
from proxy.control.throttle import Throttle
from proxy.core.model import Actor, Credential, Grant, RefusedGrant
from proxy.core.reasons import TABLE, Reason

TOO_MANY: Final = ProblemKind(status=429, reason="too_many_failures", title="Too many credentials were refused")

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9!#$%&'*+.^_`|~-]*)(?: +([\x21-\x7e]+))?[ \t]*", re.ASCII)


class ApiAuthenticator:
    """Authenticates requests on TCP."""

    def __init__(self, runtime: ControlRuntime, throttle: Throttle) -> None:
        self._runtime = runtime
        self._throttle = throttle

    async def actor(self, request: web.Request, request_id: str) -> Actor:
        """The actor that sent ``request``. Raises RequestRefused, StoreUnavailable, AuthorityOverloaded."""
        token = presented(request)
        if isinstance(token, Reason):
            raise refusal(token)
        address = request.remote or ""
        grant = await self._verify(token, address)
        if isinstance(grant, RefusedGrant):
            raise refusal(grant.reason, prefix=self._runtime.prefix_of(token))
        if grant.ranges is not None and not grant.ranges.contain(address):
            raise refusal(Reason.ADDRESS_REFUSED, prefix=grant.prefix)
        return acting(grant, address, request_id)

    async def _verify(self, token: str, address: str) -> Grant | RefusedGrant:
        found = await self._runtime.verify(token, prove=False)
        if isinstance(found, Grant):
            return found
        # Taken before the slow hash runs, so that no more run at once than may fail.
        if not self._throttle.take(address):
            raise RequestRefused(
                TOO_MANY,
                "Wait before you try another one.",
                retry_after=self._throttle.wait(address),
                prefix=self._runtime.prefix_of(token),
            )
        if found is None:
            try:
                found = await self._runtime.verify(token, prove=True)
            except BaseException:
                # Cancellation too: the error is raised again, and it does not mean that the token is wrong.
                self._throttle.give_back(address)
                raise
        if isinstance(found, Grant):
            self._throttle.give_back(address)
        if found is None:
            raise RuntimeError("a token was neither accepted nor refused")
        return found


def acting(grant: Grant, address: str, request_id: str) -> Actor:
    """The actor of a genuine token."""
    if grant.digest is None:
        raise RuntimeError("a verified token has a digest")
    return Actor(
        kind=grant.kind,
        id=grant.token_id,
        name=grant.token_name,
        user_id=grant.user_id,
        address=address,
        request_id=request_id,
        credential=Credential(token_id=grant.token_id, prefix=grant.prefix, digest=grant.digest),
    )


def presented(request: web.Request) -> str | Reason:
    """The token in a request, or the reason why there is none (RFC 6750 section 2.1)."""
    authorization = request.headers.getall("Authorization", [])
    api_key = request.headers.getall("X-API-Key", [])
    if len(authorization) + len(api_key) > 1:
        return Reason.CREDENTIAL_AMBIGUOUS
    if api_key:
        return api_key[0] or Reason.CREDENTIAL_MALFORMED
    if not authorization:
        return Reason.NO_CREDENTIAL
    matched = _SCHEME.fullmatch(authorization[0])
    if matched is None:
        return Reason.CREDENTIAL_MALFORMED
    if matched[1].lower() != "bearer":
        return Reason.NO_CREDENTIAL
    return matched[2] or Reason.CREDENTIAL_MALFORMED


def refusal(reason: Reason, *, prefix: str = "") -> RequestRefused:
    """The refusal for ``reason`` by the table of reasons; ``prefix`` is for the log."""
    entry = TABLE[reason]
    kind = ProblemKind(status=entry.status, reason=entry.public, title=entry.title, challenge=entry.challenge)
    return RequestRefused(kind, entry.detail, because=reason.value, prefix=prefix)
