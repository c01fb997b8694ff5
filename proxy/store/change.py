"""One mutation: its rows, its row in ``changes`` and its audit events, in one transaction.

Rules:

1. A change that touched a key has an audit event, and the other way round; one with neither changes nothing.
2. The block of ``Store.change`` ends only after the commit and after ``on_commit``: an acknowledged change is durable
   and announced. If the commit raised, nothing is acknowledged.
3. A commit once begun is finished and announced even if the caller is cancelled meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.model import Actor
from proxy.store import feed, grants
from proxy.store.accounts.invitations import InvitationsTable
from proxy.store.accounts.orgs import OrgsTable
from proxy.store.accounts.roles import RolesTable
from proxy.store.accounts.users import MembersTable, UsersTable
from proxy.store.audit.chain import Appended, Event, Occurred
from proxy.store.audit.log import AuditLog
from proxy.store.audit.queries import AuditQueries
from proxy.store.audit.reports import ReportsTable
from proxy.store.idempotency import Idempotency
from proxy.store.records import GrantRows
from proxy.store.tokens.active import ActiveTokens
from proxy.store.tokens.expiring import ExpiringTokens
from proxy.store.tokens.token_orgs import TokenOrgs
from proxy.store.tokens.tokens import TokensTable

_EVENT_BATCH: Final = 200
"""Events hashed in one piece: some milliseconds in which neither a lookup nor a lease renewal runs."""


class Rows:
    """The repositories over one connection: all their reads belong to one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.users = UsersTable(connection)
        self.orgs = OrgsTable(connection)
        self.members = MembersTable(connection)
        self.invitations = InvitationsTable(connection)
        self.roles = RolesTable(connection)
        self.tokens = TokensTable(connection)
        self.token_orgs = TokenOrgs(connection)
        self.idempotency = Idempotency(connection)
        self.active_tokens = ActiveTokens(connection)
        self.expiring_tokens = ExpiringTokens(connection)
        self.log = AuditQueries(connection)
        self.reports = ReportsTable(connection)

    async def grant_rows(self, token_ids: Sequence[str]) -> GrantRows:
        """Everything that decides about these tokens (at least one), as this transaction sees it."""
        return await grants.read_within(self.connection, token_ids)


class Change(Rows):
    """A mutation that is not committed yet. ``now`` is the one time (unix seconds) of everything it writes."""

    def __init__(self, connection: AsyncConnection, actor: Actor, now: float) -> None:
        super().__init__(connection)
        self.actor = actor
        self.now = now
        self.keys: dict[str, None] = {}
        self.above: int | None = None
        """The number above which this change continues, if it starts over; otherwise it follows the last one."""
        self._events: list[Event] = []

    def touched(self, *keys: str) -> None:
        """Name dependency keys (``core.dependency_keys``) whose grants may now be different."""
        self.keys.update(dict.fromkeys(keys))

    def start_over(self, seen: int) -> None:
        """Forget all earlier changes, and continue above number ``seen``, in a store with several writers.

        Every cache that has applied a number up to ``seen`` then drops everything when it asks for the changes since.
        """
        self.above = seen

    def audit(
        self,
        action: str,
        *,
        target_kind: str,
        target_id: str,
        target_name: str = "",
        org_id: str = "",
        user_id: str = "",
        details: Mapping[str, object] | None = None,
    ) -> None:
        """Record the event of this mutation: on the organisation's log with ``org_id``, otherwise on the account's.

        ``user_id`` is the account's owner, by default the actor. ``details`` are JSON values without secrets.
        """
        self._events.append(
            Event(
                action=action,
                target_kind=target_kind,
                target_id=target_id,
                target_name=target_name,
                org_id=org_id,
                user_id=user_id or self.actor.user_id,
                address=self.actor.address,
                request_id=self.actor.request_id,
                details=details or {},
            )
        )

    @property
    def empty(self) -> bool:
        """Whether nothing was changed. Raises RuntimeError if rule 1 was broken."""
        if bool(self.keys) != bool(self._events):
            raise RuntimeError("a change names the keys it touched and records an audit event")
        return not self.keys

    async def record(self, number: int, mark: bytes, log: AuditLog) -> tuple[Appended, ...]:
        """Write the audit events and the change row under this number; the commit is the caller's."""
        actor = (self.actor.kind.value, self.actor.id, self.actor.name)
        events = [Occurred(event=event, actor=actor, at=self.now) for event in self._events]
        appended = []
        for start in range(0, len(events), _EVENT_BATCH):
            some = events[start : start + _EVENT_BATCH]
            appended.append(await log.append(self.connection, some, epoch=number))
        if self.above is not None:
            await feed.forget(self.connection)
        await feed.append(self.connection, number, mark, tuple(self.keys), self.now)
        return tuple(one for one in appended if one is not None)
