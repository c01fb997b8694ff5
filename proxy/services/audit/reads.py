"""Records who reads the audit log, as audit events.

1. Reading a page of the whole log, or of an organisation's, records an event: the reader, the filter and the order.
   Reading the log of one's own account records none.
2. An export, a list of many pages and ``--follow`` are one read: pages with the same filter record one event within
   ``WINDOW`` seconds, and the next event has their number (``pages``).
3. Events are written in batches, like those of requests. A caller who varies the filter records at most ``READS``
   events a second; the rest is counted.
4. A read does not wait for its event, and succeeds if the event cannot be written, because it is not part of a change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, Protocol

from proxy.core.event_quota import TimedEventQuota
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
    """Writes events to the audit log."""

    def record(self, event: RequestEvent) -> None:
        """Write this event later, in a batch."""
        ...

    def omit(self, count: int) -> None:
        """Count events that were not recorded."""
        ...


@dataclass(slots=True)
class _Read:
    until: float
    pages: int


class AuditReads:
    """Records the events of reads; ``monotonic`` returns seconds."""

    def __init__(self, recorder: EventRecorder, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._recorder = recorder
        self._monotonic = monotonic
        self._reads: dict[tuple[str, ...], _Read] = {}
        self._allowance = TimedEventQuota(READS, READS_BURST, monotonic())

    def page(self, actor: Actor, wanted: AuditFilter, order: SortOrder, org_id: str, at: float) -> None:
        """Record that a page of an organisation's log, or ("") the whole log, was read at ``at`` (unix seconds)."""
        filtered = {name: value for name, value in asdict(wanted).items() if value}
        key = (actor.kind.value, actor.id, order.value, org_id, repr(sorted(filtered.items())))
        now = self._monotonic()
        read = self._reads.pop(key, None)
        if read is None or read.until <= now:
            pages = 1 if read is None else read.pages + 1
            read = _Read(until=now + WINDOW, pages=0)
            if self._allowance.take(now):
                self._recorder.record(_event(actor, filtered, order, org_id, at, pages))
            else:
                self._recorder.omit(1)
        else:
            read.pages += 1
        self._reads[key] = read
        while len(self._reads) > _KEPT:
            del self._reads[next(iter(self._reads))]


def _event(
    actor: Actor, filtered: dict[str, object], order: SortOrder, org_id: str, at: float, pages: int
) -> RequestEvent:
    shown = {name: value[:_TEXT] if isinstance(value, str) else value for name, value in filtered.items()}
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
