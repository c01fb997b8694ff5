"""Who has read the audit log, for the audit log.

1. A page of the whole log, or of an organisation's, leaves an event: who read, with which filter, in which order. A
   page of one's own account's log leaves none.
2. An export, a list of many pages and ``--follow`` are one read: pages with the same filter leave one event within
   ``WINDOW`` seconds, and the next one says how many there were (``pages``).
3. Events are written as those of requests are, in batches. Whoever varies the filter leaves at most so many of them as
   ``READS`` says, and the rest is counted.
4. What is read is not held up, and not refused where the event cannot be written: it has no part in a change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, Protocol

from proxy.core.allowance import TimedEventQuota
from proxy.core.model import Actor
from proxy.observe.metrics import Outcome
from proxy.services.audit.filters import AuditFilter
from proxy.store.audit.chain import LOG_ID, Event
from proxy.store.audit.queries import SortOrder
from proxy.store.audit.request_events import RequestEvent

ACTION: Final = "api.audit.list"
WINDOW: Final = 600.0
READS: Final = 5
READS_BURST: Final = 40
_KEPT: Final = 1000
_TEXT: Final = 200


class EventRecorder(Protocol):
    """Where events go."""

    def record(self, event: RequestEvent) -> None: ...

    def omit(self, count: int) -> None: ...


@dataclass(slots=True)
class _Read:
    until: float
    pages: int


class AuditReads:
    """Leaves the events of what is read; ``monotonic`` gives seconds."""

    def __init__(self, recorder: EventRecorder, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._recorder = recorder
        self._monotonic = monotonic
        self._reads: dict[tuple[str, ...], _Read] = {}
        self._allowance = TimedEventQuota(READS, READS_BURST, monotonic())

    def page(self, actor: Actor, wanted: AuditFilter, order: SortOrder, org_id: str, at: float) -> None:
        """A page was read at ``at`` (unix seconds), of the log of the organisation with this id, or "" for all."""
        asked = {name: value for name, value in asdict(wanted).items() if value}
        key = (actor.kind.value, actor.id, order.value, org_id, repr(sorted(asked.items())))
        now = self._monotonic()
        read = self._reads.pop(key, None)
        if read is None or read.until <= now:
            pages = 1 if read is None else read.pages + 1
            read = _Read(until=now + WINDOW, pages=0)
            if self._allowance.take(now):
                self._recorder.record(_event(actor, asked, order, org_id, at, pages))
            else:
                self._recorder.omit(1)
        else:
            read.pages += 1
        self._reads[key] = read
        while len(self._reads) > _KEPT:
            del self._reads[next(iter(self._reads))]


def _event(
    actor: Actor, asked: dict[str, object], order: SortOrder, org_id: str, at: float, pages: int
) -> RequestEvent:
    shown = {name: value[:_TEXT] if isinstance(value, str) else value for name, value in asked.items()}
    event = Event(
        action=ACTION,
        target_kind="log",
        target_id=LOG_ID,
        org_id=org_id,
        user_id=actor.user_id,
        outcome=Outcome.ALLOWED.value,
        address=actor.address,
        request_id=actor.request_id,
        decision_id=actor.request_id,
        details={"filter": shown, "order": order.value, "pages": pages},
    )
    prefix = "" if actor.credential is None else actor.credential.prefix
    return RequestEvent(event=event, prefix=prefix, proven=True, at=at, actor=(actor.kind.value, actor.id, actor.name))
