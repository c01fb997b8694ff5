"""The head of the audit log, in the log of the process: kept where whoever can write to the database cannot reach.

A line says the number and hash of the newest event, and which store it is of: at the start, once a minute where there
are newer ones, and at the end. ``patgate audit verify --head`` takes it. The end of the audit log is looked at each
time; reading all of it is for ``patgate audit verify``.
"""

from __future__ import annotations

from typing import Protocol

from proxy.observe.logs import get_logger
from proxy.store.audit.chain import Mark

_log = get_logger("authority.audit")


class AuditStore(Protocol):
    """What is needed of the store."""

    store_id: str

    @property
    def audit_head(self) -> Mark:
        """The newest event."""
        ...

    async def audit_tail_problem(self) -> str | None:
        """What is wrong with the end of the log. Raises StoreUnavailable."""
        ...


class HeadWatch:
    """Says each head and each problem once."""

    def __init__(self, store: AuditStore) -> None:
        self.problem: str | None = None
        """What is wrong with the end of the log, when it was looked at last."""
        self._store = store
        self._said = Mark(n=0, hash="")

    async def look(self) -> None:
        """Log the head where it is another, and a problem that is another. Raises StoreUnavailable."""
        before, self.problem = self.problem, await self._store.audit_tail_problem()
        if self.problem is not None and self.problem != before:
            _log.error("the audit log is not whole", problem=self.problem, store=self._store.store_id)
        self.say()

    def say(self) -> None:
        """Log the head where it is another than the last one that was logged."""
        head = self._store.audit_head
        if head != self._said:
            self._said = head
            _log.info("audit log head", head=str(head), store=self._store.store_id)
