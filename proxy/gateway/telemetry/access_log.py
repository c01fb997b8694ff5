"""The access log: one line per request, formatted when the request has ended and written by the sweep.

Rules of this module:
1. Of the client's request a line has method and path, cut to ``PATH_LIMIT``; never the query, a field or the body.
2. A path that may contain a secret or needs escapes, and an unusual method, go through the redactor and are escaped.
3. Requests for which no upstream was chosen, which any client can send in any number, get at most ``LINES_PER_SWEEP``
   lines per sweep and, by all workers together, ``BYTES_PER_MINUTE`` (docs/threat-model.md §8). Where only
   refusals are logged, this limit holds for all of them.
4. Between two sweeps at most ``WAITING_LINES`` and about ``WAITING_BYTES`` wait. Omitted lines are counted, and the
   count is logged.
5. Allowed requests are collected until there are ``BATCH``, and formatted together: in a hot loop a line takes half
   the time that it takes between two requests.
"""

from __future__ import annotations

import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from proxy.core.ipc.clock import boottime_ns
from proxy.core.reasons import Reason
from proxy.core.request.target import refused_form
from proxy.core.routes import Match, Route
from proxy.gateway.exchange import Exchange
from proxy.observe.logs import Logger, redact
from proxy.observe.metrics import Outcome
from proxy.settings.model import Log

if TYPE_CHECKING:
    from proxy.gateway.downstream.connection import ClientConnection

LINES_PER_SWEEP: Final = 40
BYTES_PER_MINUTE: Final = 900_000
"""Most bytes of bounded lines of all workers together; the rest of a megabyte is left for other log lines."""
SWEEPS_PER_MINUTE: Final = 120
WAITING_LINES: Final = 10_000
WAITING_BYTES: Final = 4 * 1024 * 1024
PATH_LIMIT: Final = 512
BATCH: Final = 32
_METHOD_LIMIT: Final = 32
_MOST_OPERATIONS: Final = 64
"""Operations of one route whose part of a line is remembered."""
_SAVED_UP: Final = BYTES_PER_MINUTE // 6
"""Most bytes of a minute's budget that can be written at once; the rest becomes available sweep by sweep."""
_NOTICE_BYTES: Final = 200

_NOT_CANONICAL: Final = Reason.TARGET_NOT_CANONICAL
_METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
# Without % = : $ and white space a path can contain no secret but a token, and a token has underscores.
_ODD: Final = re.compile(rb"[^!#&-9;<>-\[\]^`-~]").search
_SECRET: Final = re.compile(rb"[^!#&-9;<>-\[\]-~]|_(?:[Pp][Aa][Tt]|[Kk][Ee][Yy])_").search
_UNPRINTED: Final = re.compile(rb"[^!#-\[\]-~]")

# Times are whole nanoseconds with an exponent: exact, and formatted without a division.
_JSON: Final = (
    b'{"time":"%%b.%%bZ","level":"info","event":"request","process":%b,"pid":%d,"decision":"%%b","outcome":"%%b",'
    b'"reason":"%%b","status":%%d,"method":"%%b","path":"%%b",%%b,"token":%%b,"peer":"%%b","bytes_in":%%d,'
    b'"bytes_out":%%d,"seconds":%%de-9,"upstream":%%b,"upstream_seconds":%%b}\n'
)
_PASSED: Final = (
    _JSON.replace(b'"outcome":"%%b","reason":"%%b"', b'"outcome":"allowed","reason":"allowed"')
    .replace(b'"token":%%b', b'"token":"%%b"')
    .replace(b'"upstream_seconds":%%b', b'"upstream_seconds":%%de-9')
)
"""The same for an answered request with a token."""
_COMBINED: Final = b'%b - %b [%b] "%b" %d %d "-" "-"\n'
_NOWHERE: Final = b'"route":"-","operation":null'
_MILLISECONDS: Final = tuple(b"%03d" % ms for ms in range(1000))
_SECOND_NS: Final = 1_000_000_000

Passed = tuple[Exchange, int, "ClientConnection"]
"""An allowed exchange, its end (CLOCK_BOOTTIME, ns), and its client, which the exchange itself forgets."""


def _with_form(x: Exchange) -> bytes:
    """``target_not_canonical`` with the JSON member ``form``, which names the form of the path that is refused."""
    path, second = x.path, x.refused_second
    if second is not None and second[0] is _NOT_CANONICAL and second[2] is not None:
        path = second[2].path
    form = refused_form(path, 0 if x.match is None else x.match.route.allow)
    return f'{_NOT_CANONICAL.value}","form":"{form.value}'.encode("ascii")


def method_shown(method: bytes) -> str:
    """A request's method as access log and audit log show it, not escaped."""
    return method.decode("ascii") if method in _METHODS else _redacted(method[:_METHOD_LIMIT])


def path_shown(path: bytes) -> str:
    """A request's path as access log and audit log show it (rules 1 and 2), not escaped."""
    return path.decode("ascii") if _is_plain(path) else _redacted(path[:PATH_LIMIT])


def _is_plain(path: bytes) -> bool:
    return len(path) <= PATH_LIMIT and (_ODD(path) is None or _SECRET(path) is None)


def _redacted(value: bytes) -> str:
    return redact(value.decode("latin-1"))


class AccessLog:
    """Formats the lines that ``settings`` selects and passes them to ``write``, many at once.

    ``log`` gets the counts of omitted lines; ``prefix_of`` returns the public prefix that a refused request presents.
    ``process`` is this worker's name in the lines; the ``workers`` share the byte budget of refusals.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        settings: Log,
        *,
        log: Logger,
        prefix_of: Callable[[Exchange], str | None],
        process: str,
        workers: int,
        write: Callable[[bytes], None],
    ) -> None:
        self.all = settings.access == "all"
        self.passed: list[Passed] = []
        self._off = settings.access == "off"
        self._format: _Format = (
            _Combined(prefix_of) if settings.access_format == "combined" else _Json(prefix_of, routes, process)
        )
        self._log = log
        self._write = write
        self._waiting: list[bytes] = []
        self._lines = 0
        self._size = 0
        self._bounded = 0
        self._left_out = 0
        self._most_room = _SAVED_UP // workers
        self._more_room = (BYTES_PER_MINUTE - _SAVED_UP) / SWEEPS_PER_MINUTE / workers
        self._room: float = self._most_room

    def render(self) -> None:
        """Format the requests in ``passed``. The caller appends to it, and calls this when it has ``BATCH``."""
        passed = self.passed
        if passed:
            if self._has_room(len(passed)):
                self._keep(self._format.passed(passed), len(passed))
            passed.clear()

    def other(self, x: Exchange, now_ns: int, outcome: Outcome, reason: Reason) -> None:
        """Log a request that was refused, failed or would have been refused, within the bounds of rules 3 and 4."""
        if self._off:
            return
        self.render()
        if self.all and x.upstream is not None:
            if self._has_room(1):
                self._keep(self._format.line(x, now_ns, x.client, outcome, reason), 1)
            return
        self._bounded += 1
        line = b""
        if self._bounded <= LINES_PER_SWEEP and self._has_room(1):
            line = self._format.line(x, now_ns, x.client, outcome, reason)
        if line and len(line) <= self._room:
            self._room -= len(line)
            self._keep(line, 1)
        else:
            self._left_out += 1

    def flush(self) -> None:
        """Write the lines since the last sweep, and renew the limits."""
        self.render()
        self._format.set_clock()
        self._bounded = 0
        self._room = min(self._most_room, self._room + self._more_room)
        if self._waiting:
            self._write(b"".join(self._waiting))
            self._waiting.clear()
            self._lines = self._size = 0
        if self._left_out and self._room > 0:
            self._room -= _NOTICE_BYTES
            self._log.warning("requests not logged", count=self._left_out)
            self._left_out = 0

    def _has_room(self, lines: int) -> bool:
        if self._lines + lines <= WAITING_LINES and self._size < WAITING_BYTES:
            return True
        self._left_out += lines
        return False

    def _keep(self, data: bytes, lines: int) -> None:
        self._waiting.append(data)
        self._lines += lines
        self._size += len(data)


class _Format(ABC):
    """A format of lines. ``time_format`` is for whole seconds (``time.strftime``)."""

    time_format: str

    def __init__(self, prefix_of: Callable[[Exchange], str | None]) -> None:
        self._prefix_of = prefix_of
        self._second = b""
        self._second_ns = 0
        self.set_clock()

    @abstractmethod
    def passed(self, passed: list[Passed]) -> bytes:
        """The lines of requests that were allowed."""

    @abstractmethod
    def line(
        self, x: Exchange, now_ns: int, client: ClientConnection | None, outcome: Outcome, reason: Reason
    ) -> bytes:
        """The line of any request."""

    @abstractmethod
    def _escape(self, text: str) -> bytes:
        """``text`` with the escapes of this format."""

    def set_clock(self) -> None:
        """Read the offset of the wall clock, which may have been set, from CLOCK_BOOTTIME."""
        self._clock = time.time_ns() - boottime_ns()
        self._new_second(boottime_ns())

    def _new_second(self, now_ns: int) -> int:
        """Let ``_second`` be the second of ``now_ns``, and return the nanoseconds since its beginning."""
        wall, since = divmod(now_ns + self._clock, _SECOND_NS)
        self._second_ns = now_ns - since
        self._second = time.strftime(self.time_format, time.gmtime(wall)).encode("ascii")
        return since

    def _since_second(self, now_ns: int) -> int:
        since = now_ns - self._second_ns
        return since if 0 <= since < _SECOND_NS else self._new_second(now_ns)

    def _method(self, method: bytes) -> bytes:
        return method if method in _METHODS else self._escape(method_shown(method))

    def _path(self, path: bytes) -> bytes:
        return path if _is_plain(path) else self._escape(path_shown(path))

    def _prefix(self, x: Exchange, outcome: Outcome) -> bytes:
        """The public prefix of the token that ``x`` was judged by or presents; empty without one."""
        if x.entry is not None:
            return x.entry.grant.prefix.encode("ascii")
        prefix = None if outcome is Outcome.ALLOWED else self._prefix_of(x)
        return b"" if prefix is None else prefix.encode("ascii")


def _peer(x: Exchange, client: ClientConnection) -> bytes:
    """The peer, and behind it the members that a line has only where a trusted peer named a client or a request id."""
    peer = client.peer
    members = peer
    address, given = client.address(x), client.ingress_id(x)
    if address != peer:
        members = f'{members}","client":"{address}'
    if given:
        members = f'{members}","ingress_request_id":"{given}'
    return members.encode("ascii")


class _Json(_Format):
    time_format = "%Y-%m-%dT%H:%M:%S"

    def __init__(self, prefix_of: Callable[[Exchange], str | None], routes: Sequence[Route], process: str) -> None:
        super().__init__(prefix_of)
        frame = (json.dumps(process).encode("ascii"), os.getpid())
        self._json = _JSON % frame
        self._passed = _PASSED % frame
        self._places: list[dict[str | None, bytes]] = [{} for _ in (*routes, None)]
        self._servers: dict[str, bytes] = {}

    def passed(self, passed: list[Passed]) -> bytes:
        # All names in the loop are local, and lookups replace calls.
        template, places, servers, milliseconds = self._passed, self._places, self._servers, _MILLISECONDS
        # One search through all paths: odd ones are rare.
        plain = _ODD(b"".join([x.path for x, _, _ in passed])) is None
        second, second_ns = self._second, self._second_ns
        lines: list[bytes] = []
        for x, now_ns, client in passed:
            match, entry, server, answered, begun, path = x.match, x.entry, x.server, x.answered, x.started, x.path
            if match is None or entry is None or server is None or not answered or x.method not in _METHODS:
                lines.append(self.line(x, now_ns, client, Outcome.ALLOWED, Reason.ALLOWED))
                continue
            since = now_ns - second_ns
            if not 0 <= since < _SECOND_NS:
                since = self._new_second(now_ns)
                second, second_ns = self._second, self._second_ns
            lines.append(
                template
                % (
                    second,
                    milliseconds[since // 1_000_000],
                    x.request_id,
                    x.status,
                    x.method,
                    path if plain and len(path) <= PATH_LIMIT else self._path(path),
                    places[match.route.index].get(match.operation) or self._place(match),
                    entry.grant.prefix.encode(),
                    client.peer.encode() if x.forwarded is None else _peer(x, client),
                    x.bytes_in,
                    x.bytes_out,
                    now_ns - begun,
                    servers.get(server.name) or self._server(server.name),
                    answered - begun,
                )
            )
        return b"".join(lines)

    def line(
        self, x: Exchange, now_ns: int, client: ClientConnection | None, outcome: Outcome, reason: Reason
    ) -> bytes:
        prefix = self._prefix(x, outcome)
        since = self._since_second(now_ns)
        return self._json % (
            self._second,
            _MILLISECONDS[since // 1_000_000],
            x.request_id,
            outcome.encode("ascii"),
            reason.encode("ascii") if reason is not _NOT_CANONICAL else _with_form(x),
            x.status,
            self._method(x.method),
            self._path(x.path),
            _NOWHERE if x.match is None else self._place(x.match),
            b'"%b"' % prefix if prefix else b"null",
            b"" if client is None else _peer(x, client),
            x.bytes_in,
            x.bytes_out,
            now_ns - x.started,
            b"null" if x.server is None else self._server(x.server.name),
            b"%de-9" % (x.answered - x.started) if x.answered else b"null",
        )

    def _place(self, match: Match) -> bytes:
        """Route and operation of a line, formatted once for each pair in the configuration."""
        route, operation = match.route, match.operation
        places = self._places[route.index]
        place = places.get(operation)
        if place is None:
            place = f'"route":{json.dumps(redact(route.name))},"operation":{json.dumps(operation)}'.encode("ascii")
            # An operation that a forward-auth call names may be any.
            if len(places) < _MOST_OPERATIONS:
                places[operation] = place
        return place

    def _server(self, name: str) -> bytes:
        quoted = self._servers.get(name)
        if quoted is None:
            quoted = self._servers[name] = json.dumps(name).encode("ascii")
        return quoted

    def _escape(self, text: str) -> bytes:
        # json escapes every control character but DEL.
        return json.dumps(text)[1:-1].replace("\x7f", "\\u007f").encode("ascii")


class _Combined(_Format):
    """The combined format of Apache and nginx, with the public prefix as the user.

    Referrer and user agent are left out: they may contain a query and any text of the client's.
    """

    time_format = "%d/%b/%Y:%H:%M:%S +0000"

    def passed(self, passed: list[Passed]) -> bytes:
        return b"".join([self.line(x, now_ns, client, Outcome.ALLOWED, Reason.ALLOWED) for x, now_ns, client in passed])

    def line(
        self, x: Exchange, now_ns: int, client: ClientConnection | None, outcome: Outcome, reason: Reason
    ) -> bytes:
        del reason
        self._since_second(now_ns)
        request = b"-"
        if x.method:
            request = b"%b %b HTTP/1.%d" % (self._method(x.method), self._path(x.path) or b"-", x.version)
        peer = b"" if client is None else client.address(x).encode("ascii")
        return _COMBINED % (
            peer or b"-",
            self._prefix(x, outcome) or b"-",
            self._second,
            request,
            x.status,
            x.bytes_out,
        )

    def _escape(self, text: str) -> bytes:
        r"""``text`` with nginx's escapes: \xHH for the quotation mark, the backslash and all but printable ASCII."""
        return _UNPRINTED.sub(lambda found: b"\\x%02X" % found[0][0], text.encode("utf-8"))
