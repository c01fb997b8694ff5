"""The names of what a grant depends on, spelt in one place.

A change to the store names the same keys as the grants that were computed from the changed rows; that equality is
all that invalidation rests on, so nobody writes such a key by hand.
"""

from __future__ import annotations

from typing import Final

ROUTE_REPORTS: Final = "reports"
"""What report-only routes would have refused: no grant depends on it, and who clears it changes none."""


def token_key(token_id: str) -> str:
    """The token row: secret, status, scopes, expiry, name."""
    return "token:" + token_id


def user_key(user_id: str) -> str:
    """The user row: status, email, and the role in the user's own account."""
    return "user:" + user_id


def member_key(org_id: str, user_id: str) -> str:
    """The membership row: the role of one user in one organisation, or that there is none."""
    return "member:" + org_id + "/" + user_id


def memberships_key(user_id: str) -> str:
    """Which organisations a user is in: what a token that reaches all of them depends on."""
    return "members:" + user_id


def invitation_key(invitation_id: str) -> str:
    """An invitation to an organisation: no grant depends on it."""
    return "invitation:" + invitation_id


def role_key(name: str) -> str:
    """The role row: its permissions, or that there is no such role."""
    return "role:" + name


def org_key(org_id: str) -> str:
    """The organisation row: name, status, policy."""
    return "org:" + org_id
