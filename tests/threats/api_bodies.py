"""A valid body for each operation of the control API, for tests that call all of them."""

from __future__ import annotations

from collections.abc import Mapping

READ = ["things:read"]

BODIES: Mapping[str, object] = {
    "tokens.create": {"name": "x", "org": "lab", "scopes": READ},
    "tokens.create_in_org": {"name": "x", "scopes": READ},
    "tokens.update": {"name": "x"},
    "tokens.add_scopes": {"scopes": READ},
    "tokens.set_scopes": {"scopes": READ},
    "keys.create": {"name": "x", "org": "lab", "role": "viewer"},
    "keys.create_in_org": {"name": "x", "role": "viewer"},
    "keys.update": {"name": "x"},
    "keys.add_scopes": {"scopes": READ},
    "keys.set_scopes": {"scopes": READ},
    "keys.attach": {"permissions": READ},
    "orgs.add": {"name": "fresh"},
    "members.set": {"role": "viewer"},
    "invitations.create": {"email": "guest@example.org", "role": "viewer"},
    "users.add": {"email": "fresh@example.org", "role": "viewer"},
    "users.set_role": {"role": "viewer"},
    "roles.set": {"permissions": READ},
    "policy.set_of_org": {},
    "policy.update_of_org": {},
}
