"""What tokens must keep to: the administrator's policy, of the deployment and of each organisation.

Rules:

1. The stricter wins, field by field: an organisation can only narrow what the deployment allows.
2. A policy is held against a token where the token is made or made anew. Tokens from before are left alone until
   somebody asks for them to be ended (``broken``), but for those that nobody has used for too long.
3. An account-wide token is made by the deployment's policy alone. An organisation whose policy it breaks is out of its
   reach for as long as it does (``grants``).
4. Where scopes are forbidden a token must name its scopes: without them it would have all of its role's.
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
    """What an administrator may do to the tokens of others, beside seeing them."""

    REVOKE = "revoke"
    DELETE = "delete"


_EVERY_RIGHT: Final = frozenset(AdminRight)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPolicy:
    """Durations are in seconds; ``None`` limits nothing.

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
        """What keeps to both."""
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
        """What is wrong with a token that would live so long (``None``: for ever)."""
        if lifetime is None:
            return ("expires", "the policy requires an expiry") if self.require_expiry else None
        if self.max_lifetime is not None and lifetime > self.max_lifetime:
            return "expires", f"the policy's maximum lifetime is {self.max_lifetime:g} seconds"
        return None

    def scope_faults(self, scopes: Iterable[str] | None) -> list[FieldError]:
        """What is wrong with a token that has these scopes (``None``: all of its role's)."""
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
        """The names of the rules that a token of this whole lifetime, with these scopes, unused for so long, breaks."""
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
        """An organisation's own policy from what is stored of it: some of the fields, as ``as_dict`` writes them.

        A field that it does not say limits nothing: the deployment's counts.
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
    """How long a token's present value lives in all, in seconds to the millisecond; ``None`` for ever.

    Cut there, because the difference of two times is not exactly the duration that one of them was made with.
    """
    return None if expires_at is None else round(expires_at - (created_at if rotated_at is None else rotated_at), 3)


@lru_cache(maxsize=64)
def _as_wide(forbidden: tuple[str, ...]) -> frozenset[str]:
    """Every permission that covers one of these. Found once, and looked up for each scope of thousands of tokens."""
    return frozenset(str(Permission(*wider)) for text in forbidden for wider in Permission.parse(text).wider())


Limit = TypeVar("Limit", int, float)


def _less(one: Limit | None, other: Limit | None) -> Limit | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
