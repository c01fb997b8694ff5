"""The access log: a line a request, made when the request has ended and written with others by the sweep.

Rules of this module:
1. Of what a client sent a line has method and path, cut to `PATH_LIMIT`; never the query, a field or the body.
2. A path that is not surely plain, and a method that is not a usual one, goes through the redactor and is escaped.
3. Requests that no upstream was chosen for, which anybody can send in any number, have at most `LINES_PER_SWEEP` lines
   a sweep and, by all workers together, `BYTES_PER_MINUTE` (threats.md section 8). What reports refusals only gives
   the others no more.
4. Between two sweeps at most `WAITING_LINES` and about `WAITING_BYTES` wait. What was left out is counted and said.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Final

from proxy.core.reasons import Reason
from proxy.core.routes import Match, Route
from proxy.gateway.exchange import Exchange
from proxy.observe.logs import Logger, redact
from proxy.observe.metrics import Outcome
from proxy.settings.model import Log

LINES_PER_SWEEP: Final = 40
BYTES_PER_MINUTE: Final = 900_000
"""What the bounded lines of all workers together may come to; the rest of a megabyte is for what else there is to
say."""
SWEEPS_PER_MINUTE: Final = 120
WAITING_LINES: Final = 10_000
WAITING_BYTES: Final = 4 * 1024 * 1024
PATH_LIMIT: Final = 512
_METHOD_LIMIT: Final = 32
_SAVED_UP: Final = BYTES_PER_MINUTE // 6
"""What of a minute's bytes may be written at once; the rest comes sweep by sweep."""
_NOTICE_BYTES: Final = 200
_METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
# Without % = : $ and white space there is nothing for the redactor but a token, and a token has underscores.
_ODD: Final = re.compile(rb"[^!#&-9;<>-\[\]^`-~]").search
_SECRET: Final = re.compile(rb"[^!#&-9;<>-\[\]-~]|_(?:pat|key)_").search
_UNPRINTED: Final = re.compile(rb"[^ !#-\[\]-~]")

_JSON: Final = (
    b'{"time":"%b.%03dZ%b%b","outcome":"%b","reason":"%b","status":%d,"method":"%b","path":"%b",%b,"token":%b,'
    b'"peer":"%b","bytes_in":%d,"bytes_out":%d,"seconds":%de-6,"upstream":%b,"upstream_seconds":%b}\n'
)
# The same for a token's request that passed, in one step: the line that is made most often.
_JSON_PASSED: Final = (
    b'{"time":"%b.%03dZ%b%b","outcome":"allowed","reason":"allowed","status":%d,"method":"%b","path":"%b",%b,'
    b'"token":"%b","peer":"%b","bytes_in":%d,"bytes_out":%d,"seconds":%de-6,"upstream":%b,"upstream_seconds":%de-6}\n'
)
_COMBINED: Final = b'%b - %b [%b] "%b" %d %d "-" "-"\n'
_NOWHERE: Final = b'"route":"-","operation":null'
_SECOND_NS: Final = 1_000_000_000


class AccessLog:
    """Makes the lines that `settings` asks for and gives them to `write`, several at once.

    `log` takes the counts of what was left out; `prefix_of` gives the public prefix that a refused request presents.
    `process` is what lines name this worker, one of `workers` that share the bytes of refusals.
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
        self._off = settings.access == "off"
        combined = settings.access_format == "combined"
        self._line = self._combined if combined else self._json
        self._escape = _in_combined if combined else _in_json
        self._time_format = "%d/%b/%Y:%H:%M:%S +0000" if combined else "%Y-%m-%dT%H:%M:%S"
        self._log = log
        self._prefix_of = prefix_of
        self._write = write
        self._places: list[dict[str | None, bytes]] = [{} for _ in routes]
        self._servers: dict[str, bytes] = {}
        self._frame = b'","level":"info","event":"request","process":%b,"pid":%d,"decision":"' % (
            json.dumps(process).encode("ascii"),
            os.getpid(),
        )
        self._lines: list[bytes] = []
        self._size = 0
        self._bounded = 0
        self._left_out = 0
        self._most_room = _SAVED_UP // workers
        self._more_room = (BYTES_PER_MINUTE - _SAVED_UP) / SWEEPS_PER_MINUTE / workers
        self._room: float = self._most_room
        self._clock = time.time_ns() - time.monotonic_ns()
        self._second = b""
        self._second_ns = 0

    def allowed(self, x: Exchange, now_ns: int) -> None:
        """Log a request that passed, if all are logged (`all`, which the caller may look at first)."""
        if self.all:
            self._add(self._line(x, now_ns, Outcome.ALLOWED, Reason.ALLOWED))

    def other(self, x: Exchange, now_ns: int, outcome: Outcome, reason: Reason) -> None:
        """Log a request that was refused, failed or would have been refused, within the bounds of rule 3."""
        if self._off:
            return
        if self.all and x.upstream is not None:
            self._add(self._line(x, now_ns, outcome, reason))
            return
        if self._bounded >= LINES_PER_SWEEP:
            self._left_out += 1
            return
        self._bounded += 1
        line = self._line(x, now_ns, outcome, reason)
        if len(line) > self._room:
            self._left_out += 1
            return
        self._room -= len(line)
        self._add(line)

    def flush(self) -> None:
        """Write what has gathered since the last sweep, and count anew."""
        self._clock = time.time_ns() - time.monotonic_ns()
        self._second = b""
        self._bounded = 0
        self._room = min(self._most_room, self._room + self._more_room)
        if self._lines:
            lines, self._lines, self._size = self._lines, [], 0
            self._write(b"".join(lines))
        if self._left_out and self._room > 0:
            self._room -= _NOTICE_BYTES
            self._log.warning("requests not logged", count=self._left_out)
            self._left_out = 0

    def _add(self, line: bytes) -> None:
        if self._size >= WAITING_BYTES or len(self._lines) >= WAITING_LINES:
            self._left_out += 1
            return
        self._lines.append(line)
        self._size += len(line)

    def _json(self, x: Exchange, now_ns: int, outcome: Outcome, reason: Reason) -> bytes:
        ms = self._since_second(now_ns) // 1_000_000
        match = x.match
        where = _NOWHERE if match is None else self._places[match.route.index].get(match.operation)
        if where is None:
            where = self._place(match)
        method = x.method if x.method in _METHODS else self._escaped(x.method[:_METHOD_LIMIT])
        path = x.path
        if len(path) > PATH_LIMIT or (_ODD(path) is not None and _SECRET(path) is not None):
            path = self._escaped(path[:PATH_LIMIT])
        client, entry = x.client, x.entry
        peer = b"" if client is None else client.peer.encode("ascii")
        server = b"null" if x.server is None else self._servers.get(x.server.name) or self._server(x.server.name)
        seconds = (now_ns - x.started) // 1000
        if outcome is Outcome.ALLOWED and entry is not None and x.answered:
            return _JSON_PASSED % (
                self._second, ms, self._frame, x.request_id, x.status, method, path, where,
                entry.grant.prefix.encode("ascii"), peer, x.bytes_in, x.bytes_out, seconds, server,
                (x.answered - x.started) // 1000,
            )  # fmt: skip
        prefix = self._prefix(x, outcome)
        return _JSON % (
            self._second, ms, self._frame, x.request_id, outcome.encode("ascii"), reason.encode("ascii"), x.status,
            method, path, where, b'"%b"' % prefix if prefix else b"null", peer, x.bytes_in, x.bytes_out, seconds,
            server, b"%de-6" % ((x.answered - x.started) // 1000) if x.answered else b"null",
        )  # fmt: skip

    def _combined(self, x: Exchange, now_ns: int, outcome: Outcome, reason: Reason) -> bytes:
        del reason
        self._since_second(now_ns)
        request = b"-"
        if x.method:
            method = x.method if x.method in _METHODS else self._escaped(x.method[:_METHOD_LIMIT])
            path = x.path
            if len(path) > PATH_LIMIT or (_ODD(path) is not None and _SECRET(path) is not None):
                path = self._escaped(path[:PATH_LIMIT])
            request = b"%b %b HTTP/1.%d" % (method, path or b"-", x.version)
        peer = b"" if x.client is None else x.client.peer.encode("ascii")
        prefix = self._prefix(x, outcome)
        return _COMBINED % (peer or b"-", prefix or b"-", self._second, request, x.status, x.bytes_out)

    def _prefix(self, x: Exchange, outcome: Outcome) -> bytes:
        """The public prefix of the token that `x` was judged by or presents; empty where none counted."""
        if x.entry is not None:
            return x.entry.grant.prefix.encode("ascii")
        prefix = None if outcome is Outcome.ALLOWED else self._prefix_of(x)
        return b"" if prefix is None else prefix.encode("ascii")

    def _since_second(self, now_ns: int) -> int:
        """Nanoseconds since the second that `_second` names, which is made anew when it is over."""
        since = now_ns - self._second_ns
        if 0 <= since < _SECOND_NS and self._second:
            return since
        wall, since = divmod(now_ns + self._clock, _SECOND_NS)
        self._second_ns = now_ns - since
        self._second = time.strftime(self._time_format, time.gmtime(wall)).encode("ascii")
        return since

    def _place(self, match: Match | None) -> bytes:
        """Route and operation, made once for each that the configuration knows."""
        assert match is not None
        route, operation = match.route, match.operation
        place = f'"route":{json.dumps(redact(route.name))},"operation":{json.dumps(operation)}'.encode("ascii")
        self._places[route.index][operation] = place
        return place

    def _server(self, name: str) -> bytes:
        self._servers[name] = quoted = json.dumps(name).encode("ascii")
        return quoted

    def _escaped(self, value: bytes) -> bytes:
        return self._escape(redact(value.decode("latin-1")))


def _in_json(text: str) -> bytes:
    # json escapes every control character but DEL.
    return json.dumps(text)[1:-1].replace("\x7f", "\\u007f").encode("ascii")


def _in_combined(text: str) -> bytes:
    """As nginx escapes: what is not printable ASCII, the quotation mark and the backslash as \\xHH."""
    return _UNPRINTED.sub(lambda found: b"\\x%02X" % found[0][0], text.encode("utf-8"))
