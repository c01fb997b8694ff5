"""The ``WWW-Authenticate`` challenges of refusals (RFC 6750 section 3, RFC 9110 section 11.6.1).

1. A challenge names only places that are on for the route: the schemes of ``Authorization`` that the route offers, in
   its order. Where a header without a scheme is the only place, a 401 names that header in a challenge of the scheme
   ``Header``, because a 401 without a challenge is not valid (RFC 9110 section 15.5.2); clients skip schemes that they
   do not know.
2. ``error`` and ``scope`` are parameters of Bearer. A route that does not offer Bearer has no challenge in its 400 and
   403, and its 401 for a refused token is the one for no token, so that clients ask for another password.
3. A challenge repeats client input only where it is plain (``_PLAIN``).
"""

from __future__ import annotations

import re
from typing import Final

from proxy.core.credential_places import BASIC, BEARER, CredentialPlaces, Place
from proxy.core.reasons import Challenge
from proxy.core.routes import Match

_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")
# Looking a member up in its enumeration costs more than the comparison with it.
_INSUFFICIENT_SCOPE: Final = Challenge.INSUFFICIENT_SCOPE


class _Offered:
    """The challenges of one set of places."""

    def __init__(self, realm: str, places: CredentialPlaces) -> None:
        bearer = any(place.key == BEARER.key for place in places.offers)
        scope = f'Bearer realm="{realm}", error="insufficient_scope"'
        self.scope: bytes | None = scope.encode("ascii") if bearer else None
        plain = tuple(_challenge(place, realm) for place in places.offers)
        if not plain:
            plain = (f'Header realm="{realm}", name="{places.places[0].header}"'.encode("ascii"),)
        invalid = b', error="invalid_token"'
        request = f'Bearer realm="{realm}", error="invalid_request"'.encode("ascii")
        self.fixed: dict[Challenge, tuple[bytes, ...]] = {
            Challenge.NONE: (),
            Challenge.CREDENTIAL: plain,
            Challenge.INVALID_REQUEST: (request,) if bearer else (),
            # git and pip prompt for another password only if the response offers Basic again.
            Challenge.INVALID_TOKEN: tuple(
                value + invalid if value.startswith(b"Bearer ") else value for value in plain
            ),
            Challenge.INSUFFICIENT_SCOPE: () if self.scope is None else (self.scope,),
        }


class Challenges:
    """The challenges of one brand. ``realm`` is the brand; ``places`` apply on routes without places of their own."""

    def __init__(self, *, realm: str, places: CredentialPlaces) -> None:
        self._realm = realm
        self._default = _Offered(realm, places)
        # By set of places: bounded by the configuration.
        self._offered: dict[CredentialPlaces, _Offered] = {}

    def values(self, challenge: Challenge, match: Match | None) -> tuple[bytes, ...]:
        """The values of the ``WWW-Authenticate`` lines of a refusal, in order. ``match`` gives the needed scope."""
        offered = self._default if match is None else self._of(match.route.credentials)
        scope = needed_scope(challenge, match)
        if scope and offered.scope is not None:
            return (offered.scope + f', scope="{scope}"'.encode("ascii"),)
        return offered.fixed[challenge]

    def _of(self, places: CredentialPlaces | None) -> _Offered:
        if places is None:
            return self._default
        offered = self._offered.get(places)
        if offered is None:
            self._offered[places] = offered = _Offered(self._realm, places)
        return offered


def needed_scope(challenge: Challenge, match: Match | None) -> str:
    """The scope that a refused request lacks; "" for none, or if its entity, which is client input, is not plain."""
    if challenge is not _INSUFFICIENT_SCOPE or match is None or not match.operation or not match.entity:
        return ""
    return f"{match.entity}:{match.operation}" if _PLAIN.fullmatch(match.entity) else ""


def _challenge(place: Place, realm: str) -> bytes:
    """The challenge for a scheme of ``Authorization``; RFC 7617 section 2.1 has ``charset``."""
    if place.key == BEARER.key:
        return f'Bearer realm="{realm}"'.encode("ascii")
    if place.key == BASIC.key:
        return f'Basic realm="{realm}", charset="UTF-8"'.encode("ascii")
    return f'{place.scheme} realm="{realm}"'.encode("ascii")
