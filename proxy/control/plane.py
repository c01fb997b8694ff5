"""What the control plane serves: the services of one store, and how the process that owns it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from proxy.observe.snapshot import Snapshot
from proxy.services.orgs import Orgs
from proxy.services.roles import Roles
from proxy.services.tokens import Tokens
from proxy.services.users import Users


class Plane(Protocol):
    """Implemented by the authority."""

    @property
    def users(self) -> Users: ...

    @property
    def orgs(self) -> Orgs: ...

    @property
    def roles(self) -> Roles: ...

    @property
    def tokens(self) -> Tokens: ...

    def metrics(self) -> Snapshot:
        """Everything counted on this host, now."""
        ...

    async def unready(self) -> Mapping[str, str]:
        """Why requests cannot be served now: a sentence for each failed check, by its name; empty when ready."""
        ...
