"""Identity headers: what the backend is told about a principal, and whose word it never takes.

1. The names that a client must not send are compared folded (``claims.fold``), so no alias passes that a backend might
   map to the same variable.
2. ``STRIPPED`` holds every identity header of every preset, whichever is configured, and every claim of ``claims.py``.
   ``stripped_names`` adds the configured ones. Both apply on every route, trailers included.
3. On an authenticated route every configured header is sent, once, empty where nothing is known.
4. A value is visible ASCII: every other byte of its UTF-8, and ``%``, is percent-encoded, so it can be decoded exactly
   once and never breaks a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from proxy.core.model import Grant, OrgGrant
from proxy.core.request.claims import FAMILIES, KIND_OF, ClaimKind, fold


class IdentityField(StrEnum):
    """A fact about the principal that a header can carry."""

    USER = "user"
    EMAIL = "email"
    ORG = "org"
    ROLE = "role"
    SCOPES = "scopes"
    TOKEN = "token"  # noqa: S105 - the public prefix
    TOKEN_NAME = "token_name"  # noqa: S105 - a name that its owner gave
    KIND = "kind"


@dataclass(frozen=True, slots=True)
class IdentityNames:
    """Which header carries which fact, in the order they are sent; one fact may have several headers."""

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
        # Remote-Name is for people to read; the email is the only such name a principal has (the token's name is the
        # token's).
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
"""The ready-made namings. Groups is the role, as those proxies use groups."""

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_OURS: Final = "X-Request-Id"
"""The decision id: patgate's own, whatever a client sends."""

STRIPPED: Final[frozenset[bytes]] = frozenset(
    (
        *KIND_OF,
        *(
            fold(name.encode("ascii"))
            for name in (_OURS, *(name for preset in PRESETS.values() for _, name in preset.headers))
        ),
    )
)
"""Folded names that are always removed from what a client sends, beside the families of ``claims.FAMILY_NAMES``."""

# Headers with a meaning of their own in HTTP or to this gateway; a principal written there would be taken for
# something else.
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
    """Raise IdentityNameError unless ``name`` is a field name without a meaning of its own in HTTP or to patgate."""
    if _TOKEN.fullmatch(name) is None:
        raise IdentityNameError("is not a field name (RFC 9110 §5.1)")
    if fold(name.encode("ascii")) in _RESERVED:
        raise IdentityNameError("has a meaning of its own in HTTP or to patgate")


def names_from(source: str | Mapping[str, str]) -> IdentityNames:
    """The names of a preset, or of a mapping of field to header name; raises IdentityNameError."""
    if isinstance(source, str):
        preset = PRESETS.get(source)
        if preset is None:
            raise IdentityNameError("there is no such identity preset; the presets are " + ", ".join(PRESETS))
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
            raise IdentityNameError(
                f"the header for {what.value} has a meaning of its own and cannot carry an identity"
            )
        if folded in seen:
            raise IdentityNameError(f"the header for {what.value} is used twice")
        seen.add(folded)
        headers.append((what, name))
    if not headers:
        raise IdentityNameError("identity names at least one header")
    return IdentityNames(tuple(headers))


def stripped_names(names: IdentityNames) -> frozenset[bytes]:
    """``STRIPPED`` and the configured names, folded."""
    return STRIPPED | {fold(name.encode("ascii")) for _, name in names.headers}


_ENCODED: Final = re.compile(r"[^!-$&-~]+")


def encode_value(value: str) -> str:
    """A value as visible ASCII; ``%`` and every byte outside it are percent-encoded UTF-8 (RFC 3986 §2.1)."""
    return _ENCODED.sub(_percent, value)


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))


# Scopes are a list: each is encoded, the spaces between them stay.
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
    """The grant of a token that reaches several organisations, as a backend is told of it for a request in this one."""
    return replace(grant, org_id=there.org_id, org_name=there.org_name, role=there.role)


def identity_lines(names: IdentityNames, grant: Grant) -> bytes:
    """Every configured header as field lines, each ended by CRLF; empty values where nothing is known."""
    return "".join(f"{name}: {_VALUES[what](grant)}\r\n" for what, name in names.headers).encode("ascii")
