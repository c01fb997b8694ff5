"""What the control plane needs of the process that serves it: the services, token verification, counters, readiness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from proxy.core.model import Grant, RefusedGrant
from proxy.observe.snapshot import Snapshot
from proxy.services.factory import Services
from proxy.store.audit.request_events import RequestEvent


class ControlRuntime(Protocol):
    """Implemented by the authority."""

    @property
    def services(self) -> Services:
        """The services under the settings in use: others after a reload."""
        ...

    @property
    def brand(self) -> str:
        """What challenges name as the realm."""
        ...

    async def verify(self, token: str, *, prove: bool) -> Grant | RefusedGrant | None:
        """What a presented token may do now; a grant only if it is genuine, and then with its digest.

        None where only a slow hash can tell and ``prove`` is false. Raises StoreUnavailable, AuthorityOverloaded.
        """
        ...

    def prefix_of(self, token: str) -> str:
        """The public prefix of what is a well-formed token; "" for anything else."""
        ...

    def refused(self, reason: str) -> None:
        """Count a request of the API that was refused."""
        ...

    @property
    def records_refusals(self) -> bool:
        """Whether refused requests leave events in the audit log (``audit.requests``)."""
        ...

    def record(self, event: RequestEvent) -> None:
        """Have an event written with others, soon."""
        ...

    def omit(self, count: int) -> None:
        """Have it said in the audit log that so many events were left out."""
        ...

    def metrics(self) -> Snapshot:
        """Everything counted on this host, now."""
        ...

    async def unready(self) -> Mapping[str, str]:
        """Why requests cannot be served now: a sentence for each failed check, by its name; empty when ready."""
        ...
