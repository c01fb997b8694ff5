"""Audit events of requests: built when a request has ended, kept until the sweep sends them.

Rules of this module:
1. Of the client's request an event has the method, the path, the host where it may have decided the route, and the id
   of the requested entity, redacted and cut as in the access log; never the query, another field or the body. Where a
   second target was refused, it has the name of its field and the judged path, treated likewise. Where a trusted peer
   named the client, the event has the client's address beside the peer's, and the request id that the peer gave. Where
   the ingress named a requirement, the event has that, without secrets. Of a token it has the public prefix.
2. The number of events between two sweeps is limited. The limits are: ``STRANGERS`` refusals without a proven token,
   from all workers together, and a small burst (any client can cause any number of them, and the log is kept); and from
   each worker ``REFUSALS`` refusals of proven tokens, ``OPEN`` requests that needed no token, and ``ALLOWED`` allowed
   requests with a token (docs/threat-model.md §8).
3. At most ``WAITING`` events and ``WAITING_BYTES`` wait. Events that are left out are counted.
4. An event has the decision and its time. The authority adds who the prefix belongs to.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as _quoted
from typing import TYPE_CHECKING, Final

from proxy.core.decision import reached
from proxy.core.event_quota import REFUSALS, STRANGERS, STRANGERS_BURST, EventQuota
from proxy.core.ipc.clock import boottime_ns
from proxy.core.permissions import Permission
from proxy.core.reasons import Reason
from proxy.core.request.requirement import logged_text
from proxy.core.request.second_targets import NamedTarget
from proxy.gateway.exchange import Exchange
from proxy.gateway.telemetry.access_log import method_shown, path_shown
from proxy.observe.logs import redact
from proxy.observe.metrics import Outcome

if TYPE_CHECKING:
    from proxy.gateway.downstream.connection import ClientConnection

OPEN: Final = 40
ALLOWED: Final = 2000
WAITING: Final = 4000
WAITING_BYTES: Final = 4 * 1024 * 1024
READS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))
"""Methods that write nothing (RFC 9110 section 9.2.1; TRACE is refused)."""

LEVELS: Final = ("off", "refused", "writes", "all")
"""The values of ``audit.requests``; each includes the one before."""
_REFUSED: Final = LEVELS.index("refused")
_WRITES: Final = LEVELS.index("writes")
_ALL: Final = LEVELS.index("all")
ROUTE_LIMIT: Final = 200
"""Longest part of a route's name that is kept; the name is its pattern and may have any length."""
_TARGET_LIMIT: Final = 128
_ACTION_LIMIT: Final = 64
_HEADER_LIMIT: Final = 64
_SECOND_NS: Final = 1_000_000_000
# The characters of a usual name or id; without an underscore it contains no token.
_PLAIN: Final = re.compile(r"[0-9A-Za-z.~-]+").fullmatch
# An event is built within a request's time, and an encoder takes four times as long for the same.
_EVENT: Final = (
    '{"at":%r,"prefix":"%s","proven":%s,"action":"%s","target":%s,"route":%s,"org":%s,"outcome":"%s","reason":"%s",'
    '"address":%s,"decision":"%s","method":%s,"host":%s,"path":%s,"status":%d}'
)


class RequestEvents:
    """Builds the events that the level ``requests`` (one of ``LEVELS``) selects, in one of ``workers`` workers.

    ``prefix_of`` returns the public prefix that a request presents.
    """

    def __init__(self, *, requests: str, prefix_of: Callable[[Exchange], str | None], workers: int = 1) -> None:
        self._prefix_of = prefix_of
        self._level = LEVELS.index(requests)
        self._strangers = EventQuota(STRANGERS / workers, STRANGERS_BURST / workers)
        self._refusals = EventQuota(REFUSALS, REFUSALS)
        self._open = EventQuota(OPEN, OPEN)
        self._allowed = EventQuota(ALLOWED, ALLOWED)
        self._waiting: list[bytes] = []
        self._size = 0
        self._omitted = 0
        self._clock = 0
        self.renew()

    @property
    def writes(self) -> bool:
        """Whether allowed requests that write and have a token have events."""
        return self._level >= _WRITES

    @property
    def reads(self) -> bool:
        """Whether every request may have an event, up to the limits."""
        return self._level >= _ALL

    @property
    def waiting(self) -> int:
        """Events that have yet to be taken."""
        return len(self._waiting)

    def follow(self, requests: str, workers: int) -> None:
        """Change the level and the number of workers."""
        self._level = LEVELS.index(requests)
        self._strangers.share(STRANGERS / workers, STRANGERS_BURST / workers)

    def renew(self) -> None:
        """Renew the quotas after a sweep, and read the wall clock again, which may have been set."""
        self._clock = time.time_ns() - boottime_ns()
        for allowance in (self._strangers, self._refusals, self._open, self._allowed):
            allowance.renew()

    def passed(self, x: Exchange, now_ns: int) -> None:
        """Add a request that was allowed and ended at ``now_ns``; the caller has checked ``writes`` and ``reads``."""
        if x.entry is not None:
            self._make(self._allowed, x, now_ns, Outcome.ALLOWED, Reason.ALLOWED)
        elif self.reads:
            self._make(self._open, x, now_ns, Outcome.ALLOWED, Reason.ALLOWED)

    def other(self, x: Exchange, now_ns: int, outcome: Outcome, reason: Reason) -> None:
        """Add a request that was refused, failed or would have been refused, if the level selects it."""
        if self._level < _REFUSED:
            return
        if outcome is not Outcome.FAILED:
            self._make(self._strangers if x.entry is None else self._refusals, x, now_ns, outcome, reason)
        elif self.reads or (self.writes and x.entry is not None and x.method not in READS):
            # The backend may have carried out a request that failed.
            self._make(self._open if x.entry is None else self._allowed, x, now_ns, outcome, reason)

    def take(self, most: int) -> tuple[list[bytes], int]:
        """Remove and return at most ``most`` events (JSON objects, oldest first), and the number of those left out."""
        taken = self._waiting[:most]
        del self._waiting[:most]
        self._size -= sum(map(len, taken))
        omitted, self._omitted = self._omitted, 0
        return taken, omitted

    def _make(self, allowance: EventQuota, x: Exchange, now_ns: int, outcome: Outcome, reason: Reason) -> None:
        if len(self._waiting) >= WAITING or self._size >= WAITING_BYTES or not allowance.take():
            self._omitted += 1
            return
        event = self._event(x, now_ns, outcome, reason)
        self._waiting.append(event)
        self._size += len(event)

    def _event(self, x: Exchange, now_ns: int, outcome: Outcome, reason: Reason) -> bytes:
        match, entry, client = x.match, x.entry, x.client
        operation = None if match is None else match.operation
        event = _EVENT % (
            (now_ns + self._clock) / _SECOND_NS,
            (self._prefix_of(x) or "") if entry is None else entry.grant.prefix,
            "false" if entry is None else "true",
            # An operation's name needs no escapes.
            "request" if operation is None else f"request.{operation}"[:_ACTION_LIMIT],
            '""' if match is None or match.entity is None else _quoted(entity_shown(match.entity, match.entity_id)),
            '""' if match is None else _quoted(match.route.name[:ROUTE_LIMIT]),
            _quoted(_org(x)),
            outcome.value,
            reason.value,
            '""' if client is None else _quoted(client.address(x)),
            x.request_id.decode("ascii"),
            _quoted(_kept(method_shown(x.method))),
            _quoted(_host(x)),
            _quoted(_kept(path_shown(x.path))),
            x.status,
        )
        second = x.refused_second
        if second is not None and second[0] is reason:
            event = f"{event[:-1]},{_second(second[1], second[2])}}}"
        if client is not None and x.forwarded is not None:
            event = f"{event[:-1]}{_ingress(x, client)}}}"
        requirement = x.requirement
        if requirement is not None:
            event = f'{event[:-1]},"requirement":{_quoted(logged_text(requirement, redact))}}}'
        return event.encode("ascii")


def _ingress(x: Exchange, client: ClientConnection) -> str:
    """The members of the event of a trusted peer's request: the peer, where it named a client, and its request id."""
    members = "" if client.address(x) == client.peer else f',"peer":{_quoted(client.peer)}'
    given = client.ingress_id(x)
    return f'{members},"ingress_request_id":"{given}"' if given else members


def _second(field: bytes, target: NamedTarget | None) -> str:
    """The member of an event for a refused second target: the header, and the target that was judged."""
    named = _quoted(field.decode("latin-1")[:_HEADER_LIMIT])
    if target is None:
        return f'"second":{{"header":{named}}}'
    path = _quoted(_kept(path_shown(target.path)))
    return f'"second":{{"header":{named},"method":"{target.method.decode("ascii")}","path":{path}}}'


def entity_shown(entity: str, entity_id: str | None) -> str:
    """The entity of a request as in a permission, ``entity/id`` or ``entity``, redacted and cut."""
    if _PLAIN(entity) is not None and (entity_id is None or _PLAIN(entity_id) is not None):
        return (entity if entity_id is None else f"{entity}/{entity_id}")[:_TARGET_LIMIT]
    return redact(str(Permission(entity, entity_id, "-"))[:-2])[:_TARGET_LIMIT]


def _kept(text: str) -> str:
    """``text`` without NUL, which not every store can keep.

    The redactor undoes escapes where they hide a token, and one of them may be a NUL: the event must not be lost.
    """
    return text.replace("\0", "\ufffd") if "\0" in text else text


def _host(x: Exchange) -> str:
    """The requested host, where it had a part in the choice of a route; else ""."""
    if x.match is not None and x.match.route.host is None and x.refused_second is None:
        return ""
    return redact(x.host_name) if "_" in x.host_name else x.host_name


def _org(x: Exchange) -> str:
    """The organisation whose resources ``x`` requests, if its token reaches it; else the token's own."""
    if x.entry is None:
        return ""
    grant = x.entry.grant
    touched = None if x.match is None else reached(x.match.org, grant)
    return grant.org_id if touched is None else touched.org_id
