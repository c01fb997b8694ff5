"""Dependency keys: the names of the store rows from which a grant is computed.

A change to the store announces the keys of the rows that it changed, and every cached grant with an equal key is
invalidated. Keys are therefore built only by the functions of this module.
"""

from __future__ import annotations

from typing import Final

ROUTE_REPORTS: Final = "reports"
"""The refusals that report-only routes recorded; no grant depends on it."""
APPLIED_ROLES: Final = "roles"
"""Which configuration's roles were applied last; no grant depends on it."""


def token_key(token_id: str) -> str:
    """The token row: secret, status, scopes, expiry, name."""
    return "token:" + token_id


def user_key(user_id: str) -> str:
    """The user row: status, email, and the role in the user's own account."""
    return "user:" + user_id


def member_key(org_id: str, user_id: str) -> str:
    """The membership row: the role of one user in one organisation, or its absence."""
    return "member:" + org_id + "/" + user_id


def memberships_key(user_id: str) -> str:
    """The list of a user's organisations; a token that reaches all of them depends on it."""
    return "members:" + user_id


def invitation_key(invitation_id: str) -> str:
    """An invitation to an organisation: no grant depends on it."""
    return "invitation:" + invitation_id


def role_key(name: str) -> str:
    """The role row: its permissions, or its absence."""
    return "role:" + name


def org_key(org_id: str) -> str:
    """The organisation row: name, status, policy."""
    return "org:" + org_id
