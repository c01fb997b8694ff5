"""The listener of Envoy's calls: its connections, and the forward-auth listener inside it that decides each call.

A call becomes the bytes of a forward-auth call on a connection in memory, which that listener parses, decides, records
and answers like any other. So hold, reload, drain, deadlines and limits are the same, and only the form differs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from heapq import nsmallest
from typing import Any, Final

from proxy.core.credential_places import AUTHORIZATION
from proxy.core.ipc.clock import boottime_ns
from proxy.core.request.claims import fold
from proxy.gateway.downstream.limits import DownstreamLimits
from proxy.gateway.downstream.listener import Listener, Other
from proxy.gateway.exchange import Exchange
from proxy.gateway.ext_authz.connection import ArrivedCall, EnvoyConnection
from proxy.gateway.ext_authz.errors import ErrorCounters
from proxy.gateway.ext_authz.messages import Call, MessageError, read_call
from proxy.gateway.ext_authz.translation import UNREADABLE, answer_of, head_of, to_remove
from proxy.gateway.forward_auth import ForwardAuthPipeline
from proxy.observe import defects

_SPARE: Final = 64 * 1024
"""Bytes of a message beside what the limits of a head allow: field tags, a certificate, metadata of other filters."""


class EnvoyListener:
    """The connections of Envoy. ``inner`` decides; the sets of names are as in ``translation.to_remove``.

    ``secret_name`` is the folded name of the shared secret in the metadata of a call; empty for none.
    """

    def __init__(
        self,
        *,
        inner: Listener,
        stripped: Collection[bytes],
        places: Collection[bytes],
        secret_name: bytes,
        errors: ErrorCounters,
    ) -> None:
        self._inner = inner
        self.errors = errors
        self.connections: set[EnvoyConnection] = set()
        self.others: set[Other] = set()
        self.waiting: set[Callable[[], None]] = set()
        self.arriving = 0
        self.held_calls: dict[tuple[EnvoyConnection, int], ArrivedCall] = {}
        """Calls that have arrived while none was decided. They are read by the settings that decide them."""
        self._held = False
        self.draining = False
        self.empty = asyncio.Event()
        self._use(stripped, places, secret_name)

    def _use(self, stripped: Collection[bytes], places: Collection[bytes], secret_name: bytes) -> None:
        self._stripped = stripped
        self._places = places
        self._secret_name = secret_name

    @property
    def limits(self) -> DownstreamLimits:
        """The limits of the listener."""
        return self._inner.limits

    @property
    def max_message(self) -> int:
        """The longest message of a call in bytes."""
        return self.limits.max_head + self.limits.max_request_line + _SPARE

    @property
    def open(self) -> int:
        """Number of connections that take a descriptor."""
        return len(self.connections) + self.arriving

    def connection(self, host: str) -> EnvoyConnection:
        """A protocol object for a new connection from the address ``host``, "" at a unix socket."""
        return EnvoyConnection(self, host)

    def opened(self, connection: EnvoyConnection) -> None:
        """Count a connection whose handshake is done."""
        self.arriving -= 1
        self.connections.add(connection)
        self._inner.pipeline.count_connection(1)

    def lost(self, connection: EnvoyConnection) -> None:
        """Forget a connection that was opened."""
        self.connections.discard(connection)
        self._inner.pipeline.count_connection(-1)
        self.left()

    def left(self) -> None:
        """Note that a connection was closed, or that an arriving one never opened."""
        if self.draining and not self.open:
            self.empty.set()
        self._wake()

    def idle_longest(self, most: int, *, seconds: float) -> Sequence[EnvoyConnection]:
        """At most ``most`` of the connections that have been idle for ``seconds``, the longest idle first."""
        latest = boottime_ns() - int(seconds * 1e9)
        idle = [(since, id(c), c) for c in self.connections if c.idle() and (since := c.idle_since()) < latest]
        return [connection for _, _, connection in nsmallest(most, idle)]

    def decide(self, call: ArrivedCall) -> None:
        """Decide a call of a connection, and answer it then; while calls are held, it waits as it has arrived."""
        if self._held:
            key = call.connection, call.number
            self.held_calls[key] = call
            call.connection.decides(call.number, partial(self.held_calls.pop, key, None))
            return
        decision = _Decision(self, self._inner, call)
        try:
            decision.begin()
        except Exception as error:  # noqa: BLE001 - only this call fails, not the others on its connection
            defects.report("a call of Envoy could not be decided", error)
            decision.end()

    def head_of(self, call: ArrivedCall, read: Callable[[], Call], *, trusted: bool) -> bytes:
        """The head of the forward-auth call. Of a peer that may not ask, no message is read: that can take long."""
        name = self._secret_name
        given = [(name, value) for field, value in call.metadata if name and fold(field) == name]
        pipeline = self._inner.pipeline
        assert isinstance(pipeline, ForwardAuthPipeline)
        secret = pipeline.secret
        if not trusted or (secret is not None and not secret.is_in(given)):
            return UNREADABLE + b"\r\n"
        return head_of(read(), secret_name=name, secrets=[value for _, value in given])

    def removed(self, call: Call, x: Exchange | None) -> list[str]:
        """The headers of an allowed request that the application must not get."""
        lines: Counter[bytes] = Counter()
        if x is not None and (x.authorization is not None or x.presented is not None):
            if x.authorization is not None:
                lines[AUTHORIZATION] += 1
            if x.presented is not None:
                lines.update([name for name, _, _ in x.presented.fields])
            if x.entry is None or x.presented is not None:
                # As at the proxy: the application's own credentials pass (``phases.mutate``). But Envoy removes all
                # lines of a header, so one passes only if none of its lines is patgate's.
                foreign = self._inner.pipeline.authenticator.foreign_credentials(x)
                lines -= Counter([line.partition(b":")[0].lower() for line in foreign.split(b"\r\n")])
        return to_remove(call, stripped=self._stripped, places=self._places, credentials=lines.keys())

    def counted(self, change: int) -> None:
        """Leave a connection in memory out of the number of open connections."""
        self._inner.pipeline.count_connection(-change)

    def sweep(self, now_ns: int) -> None:
        """End calls and connections that have passed their deadline."""
        self._inner.sweep(now_ns)
        for connection in list(self.connections):
            connection.sweep(now_ns)
        for other in [each for each in self.others if each.deadline < now_ns]:
            other.late()
        self._wake()

    def follow(self, other: EnvoyListener) -> None:
        """Take over the settings of ``other``, also for open connections; these and their calls stay."""
        before = self.max_message
        self._inner.follow(other._inner)
        if self.max_message > before:
            # The window for a message is that of the connection's first settings.
            self.end_all()
        self._use(other._stripped, other._places, other._secret_name)

    def end_all(self) -> None:
        """End every connection once the calls that have begun on it are answered."""
        for connection in list(self.connections):
            connection.end()

    def hold(self) -> None:
        """Decide no call until ``release``; calls that arrive meanwhile wait."""
        self._held = True
        self._inner.hold()

    def release(self) -> None:
        """Decide calls again, those that waited first."""
        self._held = False
        self._inner.release()
        while self.held_calls and not self._held:
            self.decide(self.held_calls.pop(next(iter(self.held_calls))))

    def leave(self) -> None:
        """Ask every peer for no further calls on its connection."""
        self.draining = True
        for connection in list(self.connections):
            connection.leave_soon()

    def drain(self) -> None:
        """Close idle connections now and others after their calls."""
        self.draining = True
        if self.open:
            self.empty.clear()
        else:
            self.empty.set()
        for connection in list(self.connections):
            connection.end()

    def hang_up(self) -> None:
        """End WebSockets: there are none here."""

    def _wake(self) -> None:
        """Let acceptors that paused check whether there is room again."""
        waiting, self.waiting = self.waiting, set()
        for check in waiting:
            check()


class _Decision(asyncio.Transport):
    """The transport in memory of one forward-auth call: the response is written to it, and becomes the answer."""

    def __init__(self, listener: EnvoyListener, inner: Listener, waiting: ArrivedCall) -> None:
        super().__init__()
        self._listener = listener
        self._inner = inner
        self._waiting = waiting
        self._call: Call | None = None
        self._client: Any = None
        self._answered = False

    def begin(self) -> None:
        """Begin to decide the call."""
        inner, waiting = self._inner, self._waiting
        inner.arriving += 1
        self._client = client = inner.connection(waiting.host)
        client.connection_made(self)
        self._listener.counted(1)
        waiting.connection.decides(waiting.number, self.abandon)
        try:
            head = self._listener.head_of(waiting, self._read, trusted=client.peer_trusted)
        except MessageError:
            self._answered = True
            waiting.connection.answer(waiting.number, None)
            self.end()
        else:
            client.data_received(head)

    def _read(self) -> Call:
        self._call = call = read_call(self._waiting.message)
        return call

    def abandon(self) -> None:
        """End the call, because the peer no longer wants its answer."""
        self._answered = True
        self.end()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Answer with a response, which comes whole."""
        if self._answered:
            return
        waiting, response = self._waiting, bytes(data)
        try:
            removed: list[str] = []
            if self._call is not None and response.startswith(b"HTTP/1.1 200 "):
                removed = self._listener.removed(self._call, self._client.exchange)
            answer = answer_of(response, removed)
        except Exception as error:  # noqa: BLE001 - only this call fails, not the others on its connection
            defects.report("a call of Envoy could not be answered", error)
        else:
            self._answered = True
            waiting.connection.answer(waiting.number, answer)
        # Later, because the exchange has yet to be recorded.
        asyncio.get_running_loop().call_soon(self.end)

    def close(self) -> None:
        """End the connection, once the call that closes it has returned."""
        asyncio.get_running_loop().call_soon(self.end)

    def abort(self) -> None:
        """End the connection; a call without an answer gets an error."""
        self.close()

    def write_eof(self) -> None:
        """Note that nothing more is written."""
        self.close()

    def can_write_eof(self) -> bool:
        """Whether one direction can be ended: yes."""
        return True

    def is_closing(self) -> bool:
        """Whether the connection has ended."""
        return self._client is None

    def get_write_buffer_size(self) -> int:
        """Nothing waits here."""
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing waits here."""

    def pause_reading(self) -> None:
        """Nothing more arrives."""

    def resume_reading(self) -> None:
        """Nothing more arrives."""

    def end(self) -> None:
        """End the connection in memory; a call without an answer gets an error."""
        client, self._client = self._client, None
        if client is None:
            return
        self._listener.counted(-1)
        client.connection_lost(None)
        if not self._answered:
            self._answered = True
            self._waiting.connection.drop(self._waiting.number)
