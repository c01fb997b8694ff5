"""A sample grant for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from proxy.core.kinds import Kind, Reach
from proxy.core.model import Grant
from proxy.core.permissions import PermissionSet

_GRANT = Grant(
    prefix="acme_pat_abcDEF123456",
    token_id="abcDEF123456",
    kind=Kind.PAT,
    token_name="laptop",
    digest=b"\x01" * 32,
    user_id="u1",
    email="ada@example.org",
    org_id="",
    org_name="",
    reach=Reach.PERSONAL,
    role="editor",
    permissions=PermissionSet.of(["things:*"]),
    scopes=None,
    expires_at=None,
    depends=("token:abcDEF123456", "user:u1", "role:editor"),
)


def grant(**changes: Any) -> Grant:
    """The grant of a personal token of an editor of things, with these changes."""
    return replace(_GRANT, **changes)
