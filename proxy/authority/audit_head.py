"""Audit head logging: writes the head of the audit log to the process log, which a writer to the database cannot reach.

A line has the number and hash of the newest event and the store's id: at the start, once a minute when there are newer
events, and at the end. ``patgate audit verify --head`` takes it. Only the end of the audit log is checked here;
``patgate audit verify`` checks all of it.
"""

from __future__ import annotations

from typing import Protocol

from proxy.observe.logs import get_logger
from proxy.store.audit.chain import Mark

_log = get_logger("authority.audit")


class AuditStore(Protocol):
    """The part of the store that this module uses."""

    store_id: str

    @property
    def audit_head(self) -> Mark:
        """The newest event."""
        ...

    async def audit_tail_problem(self) -> str | None:
        """The problem at the end of the log, or None. Raises StoreUnavailable."""
        ...


class AuditHeadLogger:
    """Logs each head and each problem once."""

    def __init__(self, store: AuditStore) -> None:
        self.problem: str | None = None
        """The problem at the end of the log at the last check, or None."""
        self._store = store
        self._logged = Mark(n=0, hash="")

    async def check(self) -> None:
        """Log a new head and a new problem. Raises StoreUnavailable."""
        before, self.problem = self.problem, await self._store.audit_tail_problem()
        if self.problem is not None and self.problem != before:
            _log.error("the audit log is not whole", problem=self.problem, store=self._store.store_id)
        self.log_head()

    def log_head(self) -> None:
        """Log the head if it differs from the last one logged."""
        head = self._store.audit_head
        if head != self._logged:
            self._logged = head
            _log.info("audit log head", head=str(head), store=self._store.store_id)
