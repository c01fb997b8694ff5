"""What the control plane serves: the services of one store, and how the process that owns it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from proxy.core.model import Grant, RefusedGrant
from proxy.observe.snapshot import Snapshot
from proxy.services.accounts.invitations import InvitationService
from proxy.services.accounts.me import MeService
from proxy.services.accounts.members import MemberService
from proxy.services.accounts.orgs import OrgService
from proxy.services.accounts.roles import RoleService
from proxy.services.accounts.users import UserService
from proxy.services.audit.service import AuditService
from proxy.services.explain.report_only import ReportService
from proxy.services.explain.service import ExplainService
from proxy.services.keys.service import KeyService
from proxy.services.policy.service import PolicyService
from proxy.services.tokens.service import TokenService
from proxy.store.audit.request_events import RequestEvent


class ControlServices(Protocol):
    """Implemented by the authority."""

    @property
    def users(self) -> UserService: ...

    @property
    def orgs(self) -> OrgService: ...

    @property
    def members(self) -> MemberService: ...

    @property
    def invitations(self) -> InvitationService: ...

    @property
    def policies(self) -> PolicyService: ...

    @property
    def me(self) -> MeService: ...

    @property
    def roles(self) -> RoleService: ...

    @property
    def tokens(self) -> TokenService: ...

    @property
    def keys(self) -> KeyService: ...

    @property
    def audit(self) -> AuditService: ...

    @property
    def explain(self) -> ExplainService: ...

    @property
    def reports(self) -> ReportService: ...

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
