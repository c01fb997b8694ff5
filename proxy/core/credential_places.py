"""Credential places: where a request may carry its token, and the choice of the one credential among the fields.

Rules of this module:
1. A place is a header field with a scheme (``Authorization: Bearer …``), a field whose whole value is the token
   (``PRIVATE-TOKEN: …``), or an entry of ``Sec-WebSocket-Protocol`` in a WebSocket upgrade. Nothing else is a place: no
   query, no cookie.
2. Exactly one place of the route may hold a credential; two are ambiguous, even if they are equal.
3. A field that is no place of the route, or has another scheme, is the application's own. It is forwarded, unless it
   contains a token (``core.token_search``).
4. How a value is read depends only on its place and the value. The route decides only whether that place is open. So
   one digest of place and value may serve all routes, if the place is checked before the cache is.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from proxy.core.reasons import Reason

AUTHORIZATION: Final = b"authorization"
WEBSOCKET_FIELD: Final = b"sec-websocket-protocol"
WEBSOCKET_MARK: Final = b"patgate.bearer"
"""The subprotocol that patgate itself speaks: a client may offer it so that there is one to select (RFC 6455 1.9)."""
WEBSOCKET_PREFIX: Final = WEBSOCKET_MARK + b"."
"""Before the token in an entry of ``Sec-WebSocket-Protocol``."""

_TOKEN_CHARS: Final = rb"[A-Za-z][A-Za-z0-9!#$%&'*+.^_`|~-]*"
_SCHEME: Final = re.compile(rb"(" + _TOKEN_CHARS + rb")(?: +([\x21-\x7e]+))?[ \t]*")
_WORD: Final = re.compile(rb"(" + _TOKEN_CHARS + rb")(?: |\Z)")
"""The scheme that a value begins with, with any parameters behind it (RFC 9110 section 11.4)."""
_BASIC: Final = b"basic"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One place, as configured: ``scheme`` "" means that the whole value of the field is the token."""

    header: str
    scheme: str = ""

    @property
    def key(self) -> tuple[bytes, bytes]:
        """Field and scheme in lower case: equal for the same place."""
        return self.header.lower().encode("ascii"), self.scheme.lower().encode("ascii")


BEARER: Final = Place(header="Authorization", scheme="Bearer")
BASIC: Final = Place(header="Authorization", scheme="Basic")
API_KEY: Final = Place(header="X-API-Key")
WEBSOCKET: Final = Place(header="Sec-WebSocket-Protocol", scheme=WEBSOCKET_MARK.decode("ascii"))
DEFAULT_PLACES: Final = (BEARER, BASIC, API_KEY)


class PresentedFields:
    """The fields of a request that are a place on some route, except ``Authorization``.

    Each is a name in lower case, a value, and the line as received. ``drop_misplaced``: where such a field is no place
    and contains a token, it is dropped, instead of the request being refused.
    """

    __slots__ = ("drop_misplaced", "fields")

    def __init__(self, *, drop_misplaced: bool) -> None:
        self.fields: list[tuple[bytes, bytes, bytes]] = []
        self.drop_misplaced = drop_misplaced


class Presented:
    """The one credential of a request: its field and scheme in lower case, and the value to read it from."""

    __slots__ = ("field", "scheme", "value")

    def __init__(self, field: bytes, scheme: bytes, value: bytes) -> None:
        self.field = field
        self.scheme = scheme
        self.value = value

    @property
    def cache_key(self) -> bytes:
        """The bytes whose digest finds the grant.

        No field value contains a NUL, so no two places are confused. In ``Authorization`` the value itself tells the
        scheme: only one with a scheme has a space.
        """
        return self.value if self.field == AUTHORIZATION else b"%b\0%b\0%b" % (self.field, self.scheme, self.value)

    def token(self) -> str | Reason:
        """The token, or why it cannot be read."""
        if not self.scheme:
            return self.value.decode("latin-1") if self.value else Reason.CREDENTIAL_MALFORMED
        matched = _SCHEME.fullmatch(self.value)
        if matched is None or matched[2] is None:
            return Reason.CREDENTIAL_MALFORMED
        # Basic is an encoding of its own in Authorization only.
        if self.scheme == _BASIC and self.field == AUTHORIZATION:
            return _basic(matched[2])
        return matched[2].decode("ascii")


class CredentialPlaces:
    """The places of one route, compiled. ``offers`` are the ones to name in challenges, in their order.

    Without ``offers``, all schemes of ``Authorization`` are offered.
    """

    def __init__(self, places: Iterable[Place], offers: Iterable[Place] | None = None) -> None:
        self.places: Final = tuple(places)
        schemes = [place for place in self.places if place.key[0] == AUTHORIZATION and place.scheme]
        self.offers: Final = tuple(schemes if offers is None else offers)
        self.keys: Final = frozenset(place.key for place in self.places)
        self.websocket: Final = WEBSOCKET.key in self.keys
        fields: dict[bytes, set[bytes]] = {}
        for field, scheme in self.keys - {WEBSOCKET.key}:
            fields.setdefault(field, set()).add(scheme)
        self._authorization: frozenset[bytes] = frozenset(fields.pop(AUTHORIZATION, ()))
        self._fields: dict[bytes, frozenset[bytes]] = {field: frozenset(each) for field, each in fields.items()}
        # Fields whose whole value is the token, in any form.
        self._plain: Final = frozenset(field for field, each in self._fields.items() if each == {b""})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CredentialPlaces) and (self.keys, self.offers) == (other.keys, other.offers)

    def __hash__(self) -> int:
        return hash((self.keys, self.offers))

    def only_plain(self, authorization: bytes | None, presented: PresentedFields) -> bytes | None:
        """The cache key of a request whose only field is one whose whole value is the token; None for all others."""
        if authorization is None and len(presented.fields) == 1:
            name, value, _ = presented.fields[0]
            if name in self._plain:
                return b"%b\0\0%b" % (name, value)
        return None

    def choose(
        self, authorization: bytes | None, presented: PresentedFields | None, *, websocket: bool
    ) -> Presented | Reason:
        """The one credential in these places, or why there is none: several, none, or one in another scheme."""
        found: list[Presented] = []
        other_scheme = False
        if authorization is not None:
            scheme = _scheme_in(authorization, self._authorization)
            if scheme is None and self._authorization and _WORD.match(authorization) is None:
                # No scheme at all: no application reads that, so it was meant as the credential.
                found.append(Presented(AUTHORIZATION, b"", b""))
            elif scheme is None or (not scheme and _spaced(authorization)):
                other_scheme = True
            else:
                found.append(Presented(AUTHORIZATION, scheme, authorization))
        if presented is not None:
            for name, value, _ in presented.fields:
                if name == WEBSOCKET_FIELD:
                    if websocket and self.websocket:
                        found += [Presented(name, b"", token) for token in _tokens_among(value)]
                    continue
                schemes = self._fields.get(name)
                if schemes is None:
                    continue
                scheme = _scheme_in(value, schemes)
                if scheme is None:
                    other_scheme = True
                else:
                    found.append(Presented(name, scheme, value))
        if len(found) == 1:
            return found[0]
        if found:
            return Reason.CREDENTIAL_AMBIGUOUS
        return Reason.CREDENTIAL_UNSUPPORTED if other_scheme else Reason.NO_CREDENTIAL


DEFAULT: Final = CredentialPlaces(DEFAULT_PLACES)


def _scheme_in(value: bytes, schemes: frozenset[bytes]) -> bytes | None:
    """Which of ``schemes`` a value has; b"" if none and the whole value may be the token; else None."""
    word = _WORD.match(value)
    if word is not None:
        scheme = word[1].lower()
        if scheme in schemes:
            return scheme
    return b"" if b"" in schemes else None


def _spaced(value: bytes) -> bool:
    """Whether a value has several words, as the credentials of most schemes have and no token."""
    return b" " in value or b"\t" in value


def protocols(value: bytes) -> list[bytes]:
    """The entries of a ``Sec-WebSocket-Protocol`` (RFC 6455 section 11.3.4)."""
    entries = [each.strip(b" \t") for each in value.split(b",")]
    return [entry for entry in entries if entry]


def is_patgates(protocol: bytes) -> bool:
    """Whether a subprotocol is patgate's own: the token, or the mark that a server may select."""
    return protocol == WEBSOCKET_MARK or protocol.startswith(WEBSOCKET_PREFIX)


def offers_mark(presented: PresentedFields) -> bool:
    """Whether a client lets the server select patgate's own subprotocol."""
    return any([name == WEBSOCKET_FIELD and WEBSOCKET_MARK in protocols(value) for name, value, _ in presented.fields])


def _tokens_among(value: bytes) -> list[bytes]:
    start = len(WEBSOCKET_PREFIX)
    return [entry[start:] for entry in protocols(value) if entry.startswith(WEBSOCKET_PREFIX)]


def _basic(encoded: bytes) -> str | Reason:
    """The token in Basic credentials: the password, or the user name when the password is empty or a placeholder.

    Clients of container registries send an empty user name and password when they have no login.
    """
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode("latin-1").partition(":")
    except binascii.Error:
        return Reason.CREDENTIAL_MALFORMED
    if not colon:
        return Reason.CREDENTIAL_MALFORMED
    token = user if password in ("", "x-oauth-basic") else password
    return token or Reason.NO_CREDENTIAL
