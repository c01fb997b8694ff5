"""The token policy: the limits that administrators set on tokens, for the deployment and for each organisation.

Rules:

1. The stricter value of each field applies: an organisation can only restrict what the deployment allows.
2. A policy is enforced when a token is created or regenerated. Older tokens that violate it (``broken``) keep working
   until an administrator ends them, except those that have been unused for too long.
3. Only the deployment's policy applies to the creation of an account-wide token. The token does not reach an
   organisation whose policy it violates (``grants``).
4. If scopes are forbidden, a token must name its scopes, because without a list it would have all of its role's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, Self, TypeVar

from proxy.core.errors import FieldError
from proxy.core.permissions import Permission


class AdminRight(StrEnum):
    """What an administrator may do with the tokens of other users, besides seeing them."""

    REVOKE = "revoke"
    DELETE = "delete"


_EVERY_RIGHT: Final = frozenset(AdminRight)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPolicy:
    """The limits on tokens. Durations are in seconds; ``None`` sets no limit.

    ``forbidden_scopes``: no scope of a token may cover one of these. ``admin_rights``: see ``AdminRight``.
    ``org_tokens_per_org`` counts organisation tokens, each in every organisation that it is attached to.
    """

    max_lifetime: float | None = None
    require_expiry: bool = False
    tokens_per_user: int | None = None
    org_tokens_per_org: int | None = None
    inactive_after: float | None = None
    require_scopes: bool = False
    forbidden_scopes: tuple[str, ...] = ()
    admin_rights: frozenset[AdminRight] = frozenset()

    def stricter(self, other: TokenPolicy) -> TokenPolicy:
        """The policy that combines both, with the stricter value of each field."""
        return TokenPolicy(
            max_lifetime=_less(self.max_lifetime, other.max_lifetime),
            require_expiry=self.require_expiry or other.require_expiry,
            tokens_per_user=_less(self.tokens_per_user, other.tokens_per_user),
            org_tokens_per_org=_less(self.org_tokens_per_org, other.org_tokens_per_org),
            inactive_after=_less(self.inactive_after, other.inactive_after),
            require_scopes=self.require_scopes or other.require_scopes,
            forbidden_scopes=tuple(dict.fromkeys((*self.forbidden_scopes, *other.forbidden_scopes))),
            admin_rights=self.admin_rights & other.admin_rights,
        )

    def lifetime_fault(self, lifetime: float | None) -> FieldError | None:
        """The error for a token with this lifetime (``None``: it never expires), if it violates the policy."""
        if lifetime is None:
            return ("expires", "the policy requires an expiry") if self.require_expiry else None
        if self.max_lifetime is not None and lifetime > self.max_lifetime:
            return "expires", f"the policy's maximum lifetime is {self.max_lifetime:g} seconds"
        return None

    def scope_faults(self, scopes: Iterable[str] | None) -> list[FieldError]:
        """The errors for a token with these scopes (``None``: all of its role's)."""
        if scopes is None:
            if self.require_scopes or self.forbidden_scopes:
                return [("scopes", "the policy requires that scopes are named")]
            return []
        if not self.forbidden_scopes:
            return []
        wide = _as_wide(self.forbidden_scopes)
        return [
            (f"scopes[{position}]", "the policy forbids a scope as wide as this")
            for position, text in enumerate(scopes)
            if Permission.canonical(text) in wide
        ]

    def broken(
        self, *, lifetime: float | None, scopes: Iterable[str] | None, unused: float | None = None
    ) -> tuple[str, ...]:
        """The names of the rules that a token with this lifetime, these scopes and this time unused violates."""
        found: list[str] = []
        if lifetime is None:
            if self.require_expiry:
                found.append("require_expiry")
            if self.max_lifetime is not None:
                found.append("max_lifetime")
        elif self.max_lifetime is not None and lifetime > self.max_lifetime:
            found.append("max_lifetime")
        if self.inactive_after is not None and unused is not None and unused >= self.inactive_after:
            found.append("inactive_after")
        if scopes is None and self.require_scopes:
            found.append("require_scopes")
        if self.forbidden_scopes and self.scope_faults(scopes):
            found.append("forbidden_scopes")
        return tuple(found)

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            "max_lifetime": self.max_lifetime,
            "require_expiry": self.require_expiry,
            "tokens_per_user": self.tokens_per_user,
            "org_tokens_per_org": self.org_tokens_per_org,
            "inactive_after": self.inactive_after,
            "require_scopes": self.require_scopes,
            "forbidden_scopes": list(self.forbidden_scopes),
            "admin_rights": sorted(self.admin_rights),
        }

    @classmethod
    def of_org(cls, stored: Mapping[str, Any] | None) -> Self:
        """An organisation's own policy from its stored form: some of the fields, as ``as_dict`` writes them.

        A missing field sets no limit of its own, so the deployment's applies.
        """
        said = dict(stored or {})
        rights = said.pop("admin_rights", None)
        scopes = said.pop("forbidden_scopes", ())
        return cls(
            **said,
            forbidden_scopes=tuple(scopes),
            admin_rights=_EVERY_RIGHT if rights is None else frozenset(map(AdminRight, rights)),
        )


def lifetime(*, created_at: float, rotated_at: float | None, expires_at: float | None) -> float | None:
    """The whole lifetime of a token's present value in seconds, rounded to milliseconds; ``None`` if it never expires.

    Rounded, because the difference of two floats is not exactly the duration that was added to the first.
    """
    return None if expires_at is None else round(expires_at - (created_at if rotated_at is None else rotated_at), 3)


@lru_cache(maxsize=64)
def _as_wide(forbidden: tuple[str, ...]) -> frozenset[str]:
    """Every permission that covers one of these; cached, because it is looked up for each scope of many tokens."""
    return frozenset(str(Permission(*wider)) for text in forbidden for wider in Permission.parse(text).wider())


Limit = TypeVar("Limit", int, float)


def _less(one: Limit | None, other: Limit | None) -> Limit | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
