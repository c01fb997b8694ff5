"""Protocol of the process that serves the control plane: services, token verification, counters and readiness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from proxy.core.model import Grant, RefusedGrant
from proxy.observe.snapshot import Snapshot
from proxy.services.factory import Services
from proxy.store.audit.request_events import RequestEvent


class ControlRuntime(Protocol):
    """What the control plane uses of its process; the authority implements it."""

    @property
    def services(self) -> Services:
        """The services for the settings in use; a reload replaces them."""
        ...

    @property
    def brand(self) -> str:
        """The realm in challenges."""
        ...

    async def verify(self, token: str, *, prove: bool) -> Grant | RefusedGrant | None:
        """What a presented token may do now; a grant only if it is genuine, and then with its digest.

        None when only the slow hash could decide and ``prove`` is false. Raises StoreUnavailable, AuthorityOverloaded.
        """
        ...

    def prefix_of(self, token: str) -> str:
        """The public prefix of a well-formed token; "" for any other text."""
        ...

    def refused(self, reason: str) -> None:
        """Count a refused request of the API."""
        ...

    @property
    def records_refusals(self) -> bool:
        """Whether refused requests are recorded in the audit log (``audit.requests``)."""
        ...

    def record(self, event: RequestEvent) -> None:
        """Queue an audit event for the next batch."""
        ...

    def omit(self, count: int) -> None:
        """Record in the audit log that ``count`` events were left out."""
        ...

    def metrics(self) -> Snapshot:
        """All counters of this host, and the current gauges."""
        ...

    async def unready(self) -> Mapping[str, str]:
        """Why the gateway is not ready: a sentence for each failed check, by its name; empty when it is."""
        ...
