"""Table of all operations of the API."""

from __future__ import annotations

from typing import Any, Final

from proxy.control.api import audit, explain, invitations, keys, me, nodes, orgs, policy, roles, routes, tokens, users
from proxy.control.api.operation import Operation

OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    *me.OPERATIONS,
    *tokens.OPERATIONS,
    *keys.OPERATIONS,
    *orgs.OPERATIONS,
    *invitations.OPERATIONS,
    *users.OPERATIONS,
    *roles.OPERATIONS,
    *policy.OPERATIONS,
    *audit.OPERATIONS,
    *explain.OPERATIONS,
    *routes.OPERATIONS,
    *nodes.OPERATIONS,
)
