"""The ``WWW-Authenticate`` challenges of refusals (RFC 6750 section 3, RFC 9110 section 11.6.1).

A challenge repeats client input only where it is plain (``_PLAIN``).
"""

from __future__ import annotations

import re
from typing import Final

from proxy.core.reasons import Challenge
from proxy.core.routes import Match

_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")
# Looking a member up in its enumeration costs more than the comparison with it.
_INSUFFICIENT_SCOPE: Final = Challenge.INSUFFICIENT_SCOPE


class Challenges:
    """The challenges of one brand. ``realm`` is the brand; ``basic``: also offer Basic credentials."""

    def __init__(self, *, realm: str, basic: bool) -> None:
        bearer = f'Bearer realm="{realm}"'.encode("ascii")
        basics = (b'Basic realm="' + realm.encode("ascii") + b'", charset="UTF-8"',) if basic else ()
        self._scope = bearer + b', error="insufficient_scope"'
        self._fixed: dict[Challenge, tuple[bytes, ...]] = {
            Challenge.NONE: (),
            Challenge.BEARER: (bearer, *basics),
            Challenge.INVALID_REQUEST: (bearer + b', error="invalid_request"',),
            # git and pip prompt for another password only if the response offers Basic again.
            Challenge.INVALID_TOKEN: (bearer + b', error="invalid_token"', *basics),
            Challenge.INSUFFICIENT_SCOPE: (self._scope,),
        }

    def values(self, challenge: Challenge, match: Match | None) -> tuple[bytes, ...]:
        """The values of the ``WWW-Authenticate`` lines of a refusal, in order. ``match`` gives the needed scope."""
        # A captured entity is client input, so the challenge names it only if it is plain.
        if (
            challenge is _INSUFFICIENT_SCOPE
            and match is not None
            and match.operation
            and match.entity
            and _PLAIN.fullmatch(match.entity)
        ):
            return (self._scope + f', scope="{match.entity}:{match.operation}"'.encode("ascii"),)
        return self._fixed[challenge]
