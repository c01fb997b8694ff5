"""Report parsing: validates the usage reports and audit events of gateway workers before they reach the store.

Rules of this module:
1. A row has exactly its fields, each of its type, and no text is longer than its column (``store.tables``). Anything
   else is an ``InvalidReport``.
2. A text is one that every store can keep: no NUL, no lone surrogate.
"""

from __future__ import annotations

import math
from typing import Final

from proxy.core.reasons import Reason
from proxy.core.request.requirement import TEXT_LIMIT, read_logged
from proxy.observe.metrics import Outcome
from proxy.store.audit.chain import Event
from proxy.store.audit.reports import Report
from proxy.store.audit.request_events import RequestEvent
from proxy.store.tokens.usage import Use

OMITTED: Final = "request.omitted"
"""The action of the event with the number of requests whose events were left out because there were too many."""

_OUTCOMES: Final = frozenset(outcome.value for outcome in Outcome)
_REASONS: Final = frozenset(reason.value for reason in Reason)
_LATEST: Final = float(2**40)
"""The latest valid time, in unix seconds."""
_PATH: Final = 3 * 512
"""A path has at most 512 bytes, and redaction can make it longer."""
_HOST: Final = 256
_EVENT: Final = frozenset(
    (
        "at", "prefix", "proven", "action", "target", "route", "org", "outcome", "reason", "address", "decision",
        "method", "host", "path", "status",
    )
)  # fmt: skip
_INGRESS: Final = {"peer": 64, "ingress_request_id": 128}
"""Members of an event that only requests of trusted peers have, and their limits."""
_OPTIONAL: Final = frozenset(("second", "requirement", *_INGRESS))


class InvalidReport(Exception):
    """A row of a worker's report is invalid."""


def event(row: object) -> RequestEvent:
    """Parse an audit event of a request, as ``gateway.telemetry.audit_events`` builds it. Raises InvalidReport."""
    if not isinstance(row, dict) or row.keys() - _OPTIONAL != _EVENT:
        raise InvalidReport
    action, proven, decision = text(row["action"], 64), row["proven"], text(row["decision"], 64)
    if not isinstance(proven, bool) or (action != "request" and not action.startswith("request.")) or action == OMITTED:
        raise InvalidReport
    host = text(row["host"], _HOST)
    return RequestEvent(
        event=Event(
            action=action,
            target_kind="route",
            target_id=text(row["target"], 128),
            target_name=text(row["route"], 200),
            org_id=text(row["org"], 32),
            outcome=_one_of(row["outcome"], _OUTCOMES),
            reason=_one_of(row["reason"], _REASONS),
            address=text(row["address"], 64),
            request_id=decision,
            decision_id=decision,
            details={
                "method": text(row["method"], 64),
                **({"host": host} if host else {}),
                "path": text(row["path"], _PATH),
                **({"second_target": _second(row["second"])} if "second" in row else {}),
                **{name: text(row[name], limit) for name, limit in _INGRESS.items() if name in row},
                **({"requirement": _requirement(row["requirement"])} if "requirement" in row else {}),
                "status": integer(row["status"]),
            },
        ),
        prefix=text(row["prefix"], 64),
        proven=proven,
        at=_time(row["at"]),
    )


def _second(row: object) -> dict[str, str]:
    """The second target that was refused: the header that names it and, if it was decided on, its method and path."""
    if not isinstance(row, dict) or row.keys() not in ({"header"}, {"header", "method", "path"}):
        raise InvalidReport
    limits = {"header": 64, "method": 64, "path": _PATH}
    return {name: text(value, limits[name]) for name, value in row.items()}


def _requirement(value: object) -> str:
    """What the ingress said that the request needs (``core.request.requirement``)."""
    written = text(value, TEXT_LIMIT)
    if read_logged(written) is None:
        raise InvalidReport
    return written


def use(row: object) -> Use:
    """Parse uses of a token. Raises InvalidReport."""
    token_id, count, at, ip = _row(row, 4)
    return Use(token_id=text(token_id, 32), count=integer(count), at=_time(at), ip=text(ip, 64))


def report(row: object) -> Report:
    """Parse requests that a report-only route would have refused. Raises InvalidReport."""
    route, reason, permission, token_id, count, first_at, last_at, method, decision = _row(row, 9)
    return Report(
        route=text(route, 200),
        reason=_one_of(reason, _REASONS),
        permission=text(permission, 600),
        token_id=text(token_id, 32),
        count=integer(count),
        first_at=_time(first_at),
        last_at=_time(last_at),
        method=text(method, 64)[:32],
        decision_id=text(decision, 64),
    )


def text(value: object, limit: int) -> str:
    """A text of at most ``limit`` characters. Raises InvalidReport."""
    if not isinstance(value, str) or len(value) > limit or "\0" in value:
        raise InvalidReport
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidReport from None
    return value


def integer(value: object) -> int:
    """A count. Raises InvalidReport."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise InvalidReport
    return value


def _row(value: object, length: int) -> list[object]:
    if not isinstance(value, list) or len(value) != length:
        raise InvalidReport
    return value


def _one_of(value: object, vocabulary: frozenset[str]) -> str:
    if not isinstance(value, str) or value not in vocabulary:
        raise InvalidReport
    return value


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidReport
    if not 0 <= value <= _LATEST:
        raise InvalidReport
    return float(value)
