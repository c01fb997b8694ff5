"""Identity headers: which headers describe the principal to the backend, and which a client must never send.

1. The names that a client must not send are compared folded (``claims.fold``), so that no alias passes which a backend
   might map to the same variable.
2. ``STRIPPED`` holds the identity headers of all presets, configured or not, and every claim of ``claims.py``.
   ``IdentityOutputs.stripped`` adds the configured ones, those of every upstream. Both apply on every route, trailers
   included.
3. On an authenticated route every header configured for its upstream is sent exactly once, empty if its value is
   unknown.
4. A value is visible ASCII: every other byte of its UTF-8, and ``%``, is percent-encoded, so that decoding it once
   gives the original and it never breaks a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol

from proxy.core.decision import reached
from proxy.core.model import Grant, OrgGrant
from proxy.core.request.claims import FAMILIES, FAMILY_NAMES, KIND_OF, ClaimKind, fold


class IdentityField(StrEnum):
    """A fact about the principal that a header can carry."""

    USER = "user"
    EMAIL = "email"
    ORG = "org"
    ROLE = "role"
    SCOPES = "scopes"
    TOKEN = "token"  # noqa: S105 - the public prefix
    TOKEN_NAME = "token_name"  # noqa: S105 - the name that the owner chose
    KIND = "kind"


@dataclass(frozen=True, slots=True)
class IdentityNames:
    """The identity headers in the order in which they are sent; several headers may carry the same fact."""

    headers: tuple[tuple[IdentityField, str], ...]


class IdentityNameError(ValueError):
    """A preset or header name that cannot carry an identity."""


PRESETS: Final[Mapping[str, IdentityNames]] = MappingProxyType(
    {
        "patgate": IdentityNames(
            (
                (IdentityField.USER, "X-Auth-User"),
                (IdentityField.EMAIL, "X-Auth-Email"),
                (IdentityField.ORG, "X-Auth-Org"),
                (IdentityField.ROLE, "X-Auth-Role"),
                (IdentityField.SCOPES, "X-Auth-Scopes"),
                (IdentityField.TOKEN, "X-Auth-Token"),
                (IdentityField.TOKEN_NAME, "X-Auth-Token-Name"),
                (IdentityField.KIND, "X-Auth-Kind"),
            )
        ),
        "oauth2-proxy": IdentityNames(
            (
                (IdentityField.USER, "X-Forwarded-User"),
                (IdentityField.EMAIL, "X-Forwarded-Email"),
                (IdentityField.ROLE, "X-Forwarded-Groups"),
                (IdentityField.EMAIL, "X-Forwarded-Preferred-Username"),
            )
        ),
        # Remote-Name is a display name, and the email is the only one that a principal has: the token's name does not
        # name its owner.
        "remote-user": IdentityNames(
            (
                (IdentityField.USER, "Remote-User"),
                (IdentityField.ROLE, "Remote-Groups"),
                (IdentityField.EMAIL, "Remote-Name"),
                (IdentityField.EMAIL, "Remote-Email"),
            )
        ),
    }
)
"""The presets. Groups carry the role, because those proxies use groups for it."""

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_OURS: Final = "X-Request-Id"
"""The decision id: always patgate's own, never the client's."""

STRIPPED: Final[frozenset[bytes]] = frozenset(
    (
        *KIND_OF,
        *(
            fold(name.encode("ascii"))
            for name in (_OURS, *(name for preset in PRESETS.values() for _, name in preset.headers))
        ),
    )
)
"""Folded names that are always removed from a client's request, besides the families of ``claims.FAMILY_NAMES``."""

# Headers that already have a meaning in HTTP or to this gateway, and so cannot carry an identity.
_RESERVED: Final = frozenset(
    fold(name)
    for name in (
        b"Authorization", b"Connection", b"Content-Encoding", b"Content-Length", b"Content-Type", b"Cookie", b"Date",
        b"Expect", b"Host", b"Keep-Alive", b"Proxy-Authenticate", b"Proxy-Authorization", b"Proxy-Connection",
        b"Set-Cookie", b"TE", b"Trailer", b"Transfer-Encoding", b"Upgrade", b"Via", b"WWW-Authenticate", b"X-Api-Key",
        _OURS.encode("ascii"),
    )
)  # fmt: skip
_CLAIMED: Final = frozenset(name for name, kind in KIND_OF.items() if kind is not ClaimKind.IDENTITY)


_RESERVED_FAMILIES: Final = tuple(
    fold(name.encode("ascii")) for kind, names in FAMILIES.items() if kind is not ClaimKind.IDENTITY for name in names
)
_NAMED: Final = frozenset(
    (
        *(fold(name.encode("ascii")) for preset in PRESETS.values() for _, name in preset.headers),
        *(name for name, kind in KIND_OF.items() if kind is ClaimKind.IDENTITY),
    )
)


def check_field_name(name: str) -> None:
    """Raise IdentityNameError unless ``name`` is a field name without a meaning in HTTP or to patgate."""
    if _TOKEN.fullmatch(name) is None:
        raise IdentityNameError("is not a field name (RFC 9110 §5.1)")
    if fold(name.encode("ascii")) in _RESERVED:
        raise IdentityNameError("already has a meaning in HTTP or to patgate")


_FIXED: Final = frozenset(
    fold(name)
    for name in (
        b"Connection", b"Content-Encoding", b"Content-Length", b"Content-Range", b"Content-Type", b"Expect", b"Host",
        b"HTTP2-Settings", b"Keep-Alive", b"Max-Forwards", b"Proxy-Authenticate", b"Proxy-Authorization",
        b"Proxy-Connection", b"TE", b"Trailer", b"Transfer-Encoding", b"Upgrade", b"Via",
        b"Sec-WebSocket-Accept", b"Sec-WebSocket-Extensions", b"Sec-WebSocket-Key", b"Sec-WebSocket-Protocol",
        b"Sec-WebSocket-Version",
    )
)  # fmt: skip
"""Headers that frame or describe a message or its connection, which an upstream can neither set nor remove."""


def check_edited_name(name: str) -> None:
    """Raise IdentityNameError unless an upstream may set and remove the header ``name`` (``header_edits``).

    ``Authorization`` and other credentials are allowed, because the client's own never reach the backend.
    """
    if _TOKEN.fullmatch(name) is None:
        raise IdentityNameError("is not a field name (RFC 9110 §5.1)")
    folded = fold(name.encode("ascii"))
    if folded in _FIXED:
        raise IdentityNameError("frames or describes the message and cannot be set or removed")
    if folded in STRIPPED or folded.startswith(FAMILY_NAMES):
        raise IdentityNameError("is written by patgate alone, or dropped, on every route and cannot be set or removed")


def check_removed_name(name: str) -> None:
    """Raise IdentityNameError unless an upstream may remove the header ``name``.

    That is a header that it may set, or ``Content-Type``: without one a backend reads no parameters from a body.
    """
    if name.lower() != "content-type":
        check_edited_name(name)


def names_from(source: str | Mapping[str, str]) -> IdentityNames:
    """The names of a preset, or of a mapping of field to header name; raises IdentityNameError."""
    if isinstance(source, str):
        preset = PRESETS.get(source)
        if preset is None:
            raise IdentityNameError("unknown identity preset; the presets are " + ", ".join(PRESETS))
        return preset
    headers: list[tuple[IdentityField, str]] = []
    seen: set[bytes] = set()
    for key, name in source.items():
        try:
            what = IdentityField(key)
        except ValueError:
            raise IdentityNameError(
                "an identity field is one of " + ", ".join(member.value for member in IdentityField)
            ) from None
        if _TOKEN.fullmatch(name) is None:
            raise IdentityNameError(f"the header for {what.value} is not a field name (RFC 9110 §5.1)")
        folded = fold(name.encode("ascii"))
        if folded in _RESERVED | _CLAIMED or (folded.startswith(_RESERVED_FAMILIES) and folded not in _NAMED):
            raise IdentityNameError(f"the header for {what.value} already has a meaning and cannot carry an identity")
        if folded in seen:
            raise IdentityNameError(f"the header for {what.value} is used twice")
        seen.add(folded)
        headers.append((what, name))
    if not headers:
        raise IdentityNameError("at least one identity header is required")
    return IdentityNames(tuple(headers))


_ENCODED: Final = re.compile(r"[^!-$&-~]+")


def encode_value(value: str) -> str:
    """A value as visible ASCII: ``%`` and all other bytes of its UTF-8 are percent-encoded (RFC 3986 §2.1)."""
    return _ENCODED.sub(_percent, value)


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))


# Scopes are a list: each is encoded alone, so that the spaces between them stay.
_VALUES: Final[Mapping[IdentityField, Callable[[Grant], str]]] = {
    IdentityField.USER: lambda grant: encode_value(grant.user_id),
    IdentityField.EMAIL: lambda grant: encode_value(grant.email),
    IdentityField.ORG: lambda grant: encode_value(grant.org_name),
    IdentityField.ROLE: lambda grant: encode_value(grant.role),
    IdentityField.SCOPES: lambda grant: "" if grant.scopes is None else " ".join(map(encode_value, grant.scopes.texts)),
    IdentityField.TOKEN: lambda grant: encode_value(grant.prefix),
    IdentityField.TOKEN_NAME: lambda grant: encode_value(grant.token_name),
    IdentityField.KIND: lambda grant: grant.kind.value,
}


def seen_in(grant: Grant, there: OrgGrant) -> Grant:
    """The grant of a token with several organisations, as identity headers show it for the organisation ``there``."""
    return replace(grant, org_id=there.org_id, org_name=there.org_name, role=there.role)


def identity_lines(names: IdentityNames, grant: Grant) -> bytes:
    """All configured headers as field lines, each with its CRLF; unknown values are empty."""
    return "".join(f"{name}: {_VALUES[what](grant)}\r\n" for what, name in names.headers).encode("ascii")


class IdentityOutput(Protocol):
    """One way of telling a backend who the caller is, as field lines. Outputs with equal lines compare equal."""

    @property
    def header_names(self) -> tuple[str, ...]:
        """The headers that this output sends. They are removed from every client's request."""

    @property
    def anonymous(self) -> bytes:
        """The lines for a caller without a known identity: every header, empty."""

    def lines(self, grant: Grant) -> bytes:
        """The lines for the principal of ``grant``: every header once, each line ended by CRLF."""


@dataclass(frozen=True, slots=True)
class IdentityHeaders:
    """The output that sends each fact as a plain header."""

    names: IdentityNames

    @property
    def header_names(self) -> tuple[str, ...]:
        """The configured headers, in the order in which they are sent."""
        return tuple(name for _, name in self.names.headers)

    @property
    def anonymous(self) -> bytes:
        """Every configured header, empty."""
        return "".join(f"{name}: \r\n" for name in self.header_names).encode("ascii")

    def lines(self, grant: Grant) -> bytes:
        """Every configured header with what is known from ``grant``."""
        return identity_lines(self.names, grant)


@dataclass(frozen=True, slots=True)
class IdentityOutputs:
    """The outputs of a deployment: the one list that both entries of the gateway, and explain, use.

    ``upstreams`` has the outputs of the upstreams whose own differ from ``outputs``, by the upstream's name.
    """

    outputs: tuple[IdentityOutput, ...]
    upstreams: Mapping[str, IdentityOutputs] = field(default_factory=dict)

    def of(self, upstream: str) -> IdentityOutputs:
        """The outputs for the routes of this upstream."""
        return self.upstreams.get(upstream, self)

    @property
    def header_names(self) -> tuple[str, ...]:
        """The headers of all outputs, in the order in which they are sent; those of upstreams are not included."""
        return tuple(name for output in self.outputs for name in output.header_names)

    @property
    def anonymous(self) -> bytes:
        """The lines of every output for a caller without a known identity."""
        return b"".join(output.anonymous for output in self.outputs)

    @property
    def stripped(self) -> frozenset[bytes]:
        """Folded names of all headers that clients may not send (rule 2)."""
        everyone = (self, *self.upstreams.values())
        return STRIPPED | {fold(name.encode("ascii")) for each in everyone for name in each.header_names}

    def absent(self, upstream: str) -> bytes:
        """The headers of all other outputs, empty: an ingress that copies them overwrites the client's (rule 1)."""
        own = {fold(name.encode("ascii")) for name in self.of(upstream).header_names}
        others: dict[bytes, str] = {}
        for each in (self, *self.upstreams.values()):
            for name in each.header_names:
                others.setdefault(fold(name.encode("ascii")), name)
        return "".join(f"{name}: \r\n" for folded, name in others.items() if folded not in own).encode("ascii")

    def lines(self, grant: Grant, org: str | None = None) -> bytes:
        """The lines of every output for a request in the organisation ``org`` (id or name), if its route names one."""
        there = reached(org, grant)
        seen = grant if there is None else seen_in(grant, there)
        return b"".join(output.lines(seen) for output in self.outputs)
