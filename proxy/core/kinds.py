"""The table of credential kinds: one row for each kind, with everything in which kinds differ.

All code that depends on a kind uses this table: the token format and its regular expressions, the grant, the
permissions of the control API, the queries of the store, and the models of the API. A new kind is a member of ``Kind``,
a row in ``KINDS``, a migration for the store's indexes, and tests. Its ``entity`` is an ``AccountEntity``; the verbs
that issue it are a service of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Kind(StrEnum):
    """The kind of a credential; the word in its prefix."""

    PAT = "pat"
    KEY = "key"


class Owner(StrEnum):
    """The owner of a credential: a user, whose role applies, or an organisation, where the token has its own role."""

    USER = "user"
    ORG = "org"


class Reach(StrEnum):
    """Whose resources a token reaches: its owner's, one organisation's, the account's, or listed organisations'."""

    PERSONAL = "personal"
    ORG = "org"
    ACCOUNT = "account"
    ORGS = "orgs"


@dataclass(frozen=True, kw_only=True, slots=True)
class CredentialKind:
    """One kind. ``entity`` is the entity of the control API's permissions to read and change such credentials."""

    owner: Owner
    reaches: frozenset[Reach]
    may_manage: bool
    """Whether it may make changes through the control API, or only read."""
    entity: str


KINDS: Final[Mapping[Kind, CredentialKind]] = MappingProxyType(
    {
        Kind.PAT: CredentialKind(
            owner=Owner.USER,
            reaches=frozenset({Reach.PERSONAL, Reach.ORG, Reach.ACCOUNT}),
            may_manage=True,
            entity="patgate.tokens",
        ),
        Kind.KEY: CredentialKind(
            owner=Owner.ORG,
            reaches=frozenset({Reach.ORG, Reach.ORGS}),
            may_manage=False,
            entity="patgate.keys",
        ),
    }
)

WORDS: Final = tuple(kind.value for kind in Kind)
"""The words in prefixes, in the order of ``Kind``."""
PATTERN: Final = "|".join(WORDS)
"""A regular expression for any of ``WORDS``, for use in a group."""
OF_USERS: Final = tuple(kind for kind, row in KINDS.items() if row.owner is Owner.USER)
OF_ORGS: Final = tuple(kind for kind, row in KINDS.items() if row.owner is Owner.ORG)
