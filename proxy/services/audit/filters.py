"""Filters of the audit log: parses filters, times, event numbers and cursors into store queries."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from proxy.core.errors import Invalid
from proxy.core.kinds import PATTERN
from proxy.core.model import ACTOR_KINDS
from proxy.observe.metrics import Outcome
from proxy.services.audit.vocabulary import LEVELS, NOW, OUTCOMES, read_moment
from proxy.services.validation import Fields
from proxy.store.audit.chain import Mark
from proxy.store.audit.queries import LogPosition, LogQuery, SortOrder

DENIED: Final = (Outcome.REFUSED.value, Outcome.REPORTED.value)

_PREFIX: Final = re.compile(rf"[^_]+_(?:{PATTERN})_([0-9A-Za-z]+)", re.ASCII)
_MARK: Final = re.compile(r"(\d{1,15}):([0-9a-f]{64})", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,15}", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditFilter:
    """The requested filter: events that match all of its fields; ``None`` does not filter.

    ``actor`` and ``target`` are ids, or public prefixes of tokens. ``actor_name`` is the name of a token. ``user`` (an
    email or id) selects a user's log, ``org`` (a name or id) an organisation's. ``action`` may be a prefix that ends
    with a dot. ``denied`` selects requests that were refused or would have been. ``request`` is the id of a request or
    decision. ``since`` (inclusive) and ``until`` (exclusive) are durations before now, or RFC 3339.
    """

    actor_kind: str | None = None
    actor: str | None = None
    actor_name: str | None = None
    user: str | None = None
    org: str | None = None
    level: str | None = None
    action: str | None = None
    target: str | None = None
    target_kind: str | None = None
    outcome: str | None = None
    denied: bool = False
    reason: str | None = None
    address: str | None = None
    request: str | None = None
    since: str | None = None
    until: str | None = None


EVERYTHING: Final = AuditFilter()


def read_filter(wanted: AuditFilter, now: float, fields: Fields) -> LogQuery:
    """The store query for the filter, without ``user`` and ``org``; errors go to ``fields``."""
    outcomes: tuple[str, ...] | None = DENIED if wanted.denied else None
    if wanted.outcome is not None:
        fields.check(lambda: _one_of(OUTCOMES, wanted.outcome, "outcome"))
        # With both filters, both must match.
        outcomes = tuple(value for value in outcomes or OUTCOMES if value == wanted.outcome)
    return LogQuery(
        target_id=_id(wanted.target),
        actor_id=_id(wanted.actor),
        actor_name=wanted.actor_name,
        request_id=wanted.request,
        actor_kind=fields.check(lambda: _one_of(ACTOR_KINDS, wanted.actor_kind, "actor_kind")),
        target_kind=wanted.target_kind,
        level=fields.check(lambda: _one_of(LEVELS, wanted.level, "level")),
        action=wanted.action,
        outcomes=outcomes,
        reason=wanted.reason,
        address=fields.check(lambda: read_address(wanted.address)),
        since=fields.check(lambda: read_moment(wanted.since, now, "since")),
        until=fields.check(lambda: read_moment(wanted.until, now, "until")),
    )


def _id(reference: str | None) -> str | None:
    """The id: the reference itself, or the id in a token's public prefix."""
    if reference is None or (prefix := _PREFIX.fullmatch(reference)) is None:
        return reference
    return prefix[1]


def _one_of(values: tuple[str, ...], value: str | None, field: str) -> str | None:
    if value is not None and value not in values:
        raise Invalid(field, f"one of {', '.join(values)}")
    return value


def read_address(text: str | None) -> str | None:
    """An IP address in the form that events have. Raises Invalid."""
    try:
        return None if text is None else str(ipaddress.ip_address(text))
    except ValueError:
        raise Invalid("address", "an IPv4 or IPv6 address") from None


def read_number(text: str) -> int | None:
    """The number of an event; ``None`` for the newest one. Raises Invalid."""
    if text == NOW:
        return None
    if _NUMBER.fullmatch(text) is None:
        raise Invalid("after", f"the number of an event, or {NOW}")
    return int(text)


def read_mark(text: str, field: str = "head") -> Mark:
    """An event by its number and hash, N:HASH. Raises Invalid."""
    found = _MARK.fullmatch(text)
    if found is None:
        raise Invalid(field, "an event's number and hash, N:HASH, as a verification returns them")
    return Mark(n=int(found[1]), hash=found[2])


_PLACES: Final[Mapping[SortOrder, tuple[type, ...]]] = {
    SortOrder.NEWEST: (float, int),
    SortOrder.OLDEST: (float, int, int),
    SortOrder.RECORDED: (int,),
}
"""The fields of a cursor by order: the time and number of an event, and the number of the last event to list."""


def write_place(order: SortOrder, place: LogPosition) -> str:
    """The cursor for this position in this order."""
    values = {
        SortOrder.NEWEST: (place.at, place.n),
        SortOrder.OLDEST: (place.at, place.n, place.last),
        SortOrder.RECORDED: (place.n,),
    }[order]
    text = json.dumps([order.value, *values], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode("ascii")).rstrip(b"=").decode("ascii")


def read_place(text: str, order: SortOrder) -> LogPosition:
    """The inverse of ``write_place``. Raises Invalid for a text that it did not write for this order."""
    try:
        name, *values = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        name, values = None, []
    fits = name == order.value and tuple(type(value) for value in values) == _PLACES[order]
    if not fits or not all(math.isfinite(value) and abs(value) < 2**62 for value in values):
        raise Invalid("cursor", "this is not a cursor of this list")
    if order is SortOrder.RECORDED:
        return LogPosition(at=0.0, n=values[0])
    return LogPosition(at=values[0], n=values[1], last=values[2] if order is SortOrder.OLDEST else None)
