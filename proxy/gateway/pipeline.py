"""The one visible order of the phases, and the endings of an exchange.

    listen → parse → route → authenticate → authorise → second target → mutate → forward → relay → record

``listen`` and ``parse`` have filled the exchange when ``begin`` gets it. A phase returns None to continue, or the
reason of a refusal; it writes nothing itself. Everything on a cache hit runs within ``begin``, without a task, an await
or a lock.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final

from proxy.core.model import Access
from proxy.core.reasons import TABLE, Reason
from proxy.core.request.request_reading import only_reported
from proxy.core.routes import RouteTable
from proxy.gateway.exchange import Exchange
from proxy.gateway.phases.authenticate import PENDING, Authenticator
from proxy.gateway.phases.authorise import authorise
from proxy.gateway.phases.forward import Forwarder
from proxy.gateway.phases.mutate import Mutator, forwarded_host
from proxy.gateway.phases.record import ExchangeRecorder
from proxy.gateway.phases.relay import Relay
from proxy.gateway.phases.respond import Responder
from proxy.gateway.phases.revalidate import LiveExchanges
from proxy.gateway.phases.route import route
from proxy.gateway.phases.second_target import second_target
from proxy.gateway.upstream.pool import UpstreamConnection, UpstreamPool
from proxy.observe import defects
from proxy.settings.model import Upstream as UpstreamSettings

# A call through the module, ``time.x()``, costs twice as much.
_now_ns: Final = time.monotonic_ns
# Looking a member up in its enumeration costs more than the comparison with it.
_TOKEN: Final = Access.TOKEN


class Decider(ABC):
    """The phases up to the verdict, which the proxy and the forward-auth entry share."""

    def __init__(
        self, *, routes: RouteTable, authenticator: Authenticator, responder: Responder, recorder: ExchangeRecorder
    ) -> None:
        self.routes = routes
        self.authenticator = authenticator
        self.responder = responder
        self.recorder = recorder
        self.patience: float | None = None
        """Seconds that the authority may take to tell of a credential; None leaves it to the link's own deadlines."""
        self._settling: set[asyncio.Task[None]] = set()
        self._generation = 0
        self._held = False
        self._postponed: list[Exchange] = []

    def begin(self, x: Exchange) -> None:
        """Take a parsed request to its verdict, at once if the cache can tell."""
        reason = route(self.routes, x)
        if reason is not None:
            self.refuse(x, reason)
            return
        if x.misplaced:
            self.refuse(x, Reason.TOKEN_MISPLACED)
            return
        assert x.match is not None
        if x.match.route.access is not _TOKEN:
            self._judge(x, None)
            return
        answer = self.authenticator.authenticate(x)
        if answer is None:
            self._judge(x, authorise(x))
        elif answer is PENDING:
            task = asyncio.create_task(self._settle(x), name="settle")
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)
            task.add_done_callback(defects.noted)
        else:
            self._judge(x, answer)

    def hold(self) -> None:
        """Decide nothing until ``release``: what waits for the authority goes on waiting."""
        self._held = True

    def release(self) -> None:
        """Decide again, from the beginning for what waited."""
        self._held = False
        postponed, self._postponed = self._postponed, []
        for x in postponed:
            self._begin_anew(x)

    def follow(self, routes: RouteTable, responder: Responder) -> None:
        """Decide by these from now on; what has not been decided yet will be, too."""
        self.routes = routes
        self.responder = responder
        self._generation += 1

    @abstractmethod
    def allowed(self, x: Exchange) -> None:
        """What follows a favourable verdict."""

    def refuse(self, x: Exchange, reason: Reason) -> None:
        """End ``x`` with the response for ``reason``."""
        client = x.client
        if client is None:
            return
        x.reason = reason
        x.status = TABLE[reason].status
        if not x.body_done or client.listener.draining:
            # What is left of the body must never be read as the next request.
            x.keep_alive = False
        client.respond(x, self.responder.refusal(x, reason))

    def complete(self, x: Exchange) -> None:
        """Record ``x`` and let its client go on."""
        client = x.client
        if client is None:
            return
        now_ns = _now_ns()
        self.recorder.record(x, now_ns)
        x.client = None
        client.finished(x, now_ns)

    def body(self, x: Exchange, pieces: list[bytes]) -> None:
        """More of the request's body has come. Without an upstream there is nobody to have it."""
        del x, pieces

    def left(self, x: Exchange) -> None:
        """The client is gone before its response was complete."""
        if x.reason is None and not x.tunnel:
            x.reason = Reason.CLIENT_LEFT
            x.status = TABLE[Reason.CLIENT_LEFT].status
        self.recorder.record(x, _now_ns())
        x.client = None

    def timed_out(self, x: Exchange) -> None:
        """The deadline of ``x`` has passed."""
        self.refuse(x, Reason.REQUEST_TIMEOUT)

    async def close(self) -> None:
        """End what is still being settled."""
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)

    def _judge(self, x: Exchange, reason: Reason | None) -> None:
        """Let ``x`` pass or refuse it, by the verdict on its own target and, after that, on what its fields name."""
        if reason is not None:
            assert x.match is not None
            if not only_reported(x.match, reason):
                self.refuse(x, reason)
                return
            x.reported = reason
            if TABLE[reason].status == 401:
                # A request that failed authentication is forwarded without identity headers.
                x.entry = None
        if x.second is not None:
            reason = self._judge_second(x)
            if reason is not None:
                self.refuse(x, reason)
                return
        self.allowed(x)

    def _judge_second(self, x: Exchange) -> Reason | None:
        """The verdict on the resources that fields of ``x`` name. A refusal leaves the match that refuses in
        ``x.match``, so that challenge, log and audit speak of what was refused.
        """
        refusal = second_target(self.routes, x, hosts=self.hosts(x), ports=self.compares_ports())
        if refusal is None:
            return None
        match, reason = refusal.match, refusal.reason
        if match is not None and only_reported(match, reason):
            if x.reported is None:
                x.reported = reason
                x.refused_second = (reason, refusal.field, refusal.target)
            return None
        x.refused_second = (reason, refusal.field, refusal.target)
        if match is not None:
            x.match = match
        return reason

    def hosts(self, x: Exchange) -> tuple[bytes, ...]:
        """The values of ``Host`` by which a client may name this host in other fields."""
        return (x.host,)

    def compares_ports(self) -> bool:
        """Whether the host that a second target names must have the request's port, too."""
        return True

    async def _settle(self, x: Exchange) -> None:
        generation = self._generation
        try:
            async with asyncio.timeout(self.patience):
                reason = await self.authenticator.settle(x)
        except TimeoutError:
            reason = Reason.AUTHORITY_UNAVAILABLE
        if self._held:
            self._postponed.append(x)
        elif generation != self._generation:
            self._begin_anew(x)
        elif x.client is not None:
            self._judge(x, authorise(x) if reason is None else reason)

    def _begin_anew(self, x: Exchange) -> None:
        """Decide ``x`` by the configuration of now."""
        if x.client is not None:
            x.entry = None
            # As if it had come now: the lease that counts is the one of now.
            x.started = _now_ns()
            Decider.begin(self, x)

    def hang_up(self, x: Exchange) -> None:
        """End an exchange without an end of its own, a WebSocket, as if both sides had ended it."""
        self.complete(x)


class ProxyPipeline(Decider):
    """The reverse proxy: a favourable verdict forwards the request."""

    def __init__(
        self,
        *,
        routes: RouteTable,
        authenticator: Authenticator,
        responder: Responder,
        recorder: ExchangeRecorder,
        mutator: Mutator,
        upstreams: Mapping[str, UpstreamSettings],
    ) -> None:
        super().__init__(routes=routes, authenticator=authenticator, responder=responder, recorder=recorder)
        self._mutator = mutator
        self._forwarder = Forwarder(fail=self.fail)
        self.live = LiveExchanges(judge=self._judge_again, cut=self.fail)
        self._relay = Relay(self)
        self._upstreams = {name: UpstreamPool(name, settings, self._relay) for name, settings in upstreams.items()}
        self._retired: list[UpstreamPool] = []

    def prepared(self, upstreams: Mapping[str, UpstreamSettings]) -> dict[str, UpstreamPool]:
        """The upstreams that other settings ask for: those of now where nothing of theirs can have changed.

        Raises OSError and ssl.SSLError for certificates that cannot be loaded.
        """
        found: dict[str, UpstreamPool] = {}
        for name, settings in upstreams.items():
            known = self._upstreams.get(name)
            # Files behind the same names may have changed.
            plain = all(server.scheme != "https" for server in settings.servers)
            if known is not None and known.settings == settings and plain:
                found[name] = known
            else:
                found[name] = UpstreamPool(name, settings, self._relay)
        return found

    def forget(self, prepared: Mapping[str, UpstreamPool]) -> None:
        """Let go of what was prepared and is not wanted."""
        kept = self._upstreams.values()
        for upstream in prepared.values():
            if upstream not in kept:
                upstream.close()

    def forward_to(self, mutator: Mutator, upstreams: dict[str, UpstreamPool]) -> None:
        """Forward with these from now on. Exchanges that run end where they are."""
        before, self._upstreams = self._upstreams, upstreams
        self._mutator = mutator
        for upstream in before.values():
            if upstream not in upstreams.values():
                upstream.retire()

    def hold(self) -> None:
        super().hold()
        self.live.held = True

    def release(self) -> None:
        super().release()
        # Whatever runs is judged by what counts now.
        self.live.held = False
        self.live.judge_all()

    @property
    def upstreams(self) -> Sequence[UpstreamPool]:
        """Every upstream, for whoever watches over their servers."""
        return tuple(self._upstreams.values())

    def allowed(self, x: Exchange) -> None:
        assert x.match is not None
        x.upstream = upstream = self._upstreams[x.match.route.upstream]
        client = x.client
        assert client is not None
        if x.body_done:
            client.deadline = x.started + upstream.response_ns
        else:
            self.live.watch(x)
        self._mutator.mutate(x)
        self._forwarder.forward(x)

    def hosts(self, x: Exchange) -> tuple[bytes, ...]:
        return (x.host,) if x.forwarded is None else (x.host, forwarded_host(x, x.forwarded))

    def body(self, x: Exchange, pieces: list[bytes]) -> None:
        self._forwarder.send_body(x, pieces)

    def goes_on(self, x: Exchange) -> None:
        self.live.watch(x)

    def refuse(self, x: Exchange, reason: Reason) -> None:
        self._detach(x)
        super().refuse(x, reason)

    def complete(self, x: Exchange) -> None:
        entry = x.entry
        if entry is not None and entry.live is not None:
            self.live.forget(x)
        super().complete(x)

    def left(self, x: Exchange) -> None:
        self.live.forget(x)
        self._detach(x)
        super().left(x)

    def timed_out(self, x: Exchange) -> None:
        client = x.client
        if client is not None and client.full and x.response_started:
            # It has left its answer unread for so long that it might as well be gone.
            self.fail(x, Reason.CLIENT_LEFT)
        # A client that is not read, because the backend does not read, is not to blame for the silence.
        elif not x.body_done and (client is None or not client.paused):
            self.fail(x, Reason.REQUEST_TIMEOUT)
        elif x.upstream is None:
            self.fail(x, Reason.AUTHORITY_UNAVAILABLE)
        else:
            self.fail(x, Reason.UPSTREAM_TIMEOUT)

    def fail(self, x: Exchange, reason: Reason) -> None:
        """The exchange cannot go on: a response for ``reason``, or a broken connection if one had begun."""
        if x.response_started:
            self._detach(x)
            client = x.client
            if client is not None:
                x.reason = reason
                x.status = TABLE[reason].status
                client.abort()
        else:
            self.refuse(x, reason)

    def retry(self, x: Exchange, connection: UpstreamConnection) -> bool:
        if not self._forwarder.may_retry(x, connection):
            return False
        connection.exchange = None
        self._forwarder.retry(x, connection.server)
        return True

    async def _judge_again(self, x: Exchange) -> Reason | None:
        reason = await self._judge_own_again(x)
        if reason is not None:
            x.refused_second = None
            return reason
        return self._judge_second(x) if x.second is not None else None

    async def _judge_own_again(self, x: Exchange) -> Reason | None:
        """The current verdict on the request's own target."""
        before = x.match
        reason = route(self.routes, x)
        if reason is not None:
            x.match = before
            return reason
        match = x.match
        assert match is not None
        if match.route.access is not Access.TOKEN:
            return None
        x.epoch = self.authenticator.epoch
        reason = await self.authenticator.settle(x)
        if reason is None:
            reason = authorise(x)
        return None if reason is None or only_reported(match, reason) else reason

    def hang_up(self, x: Exchange) -> None:
        self._detach(x)
        super().hang_up(x)

    def sweep(self, now: float) -> None:
        """Close upstream connections that have been idle for too long (``now`` in monotonic seconds), cut what may not
        go on."""
        if self.live:
            self.live.sweep(time.time(), lease_held=self.authenticator.lease_held)
        for upstream in self._upstreams.values():
            upstream.sweep(now)

    async def close(self) -> None:
        await super().close()
        await self.live.close()
        await self._forwarder.close()
        for upstream in self._upstreams.values():
            upstream.close()

    @staticmethod
    def _detach(x: Exchange) -> None:
        """Give up the upstream connection of ``x``, if it has one: it is not known what is on it."""
        connection = x.upstream_connection
        if connection is not None:
            x.upstream_connection = None
            connection.server.active -= 1
            if x.tunnel and x.reason is None:
                connection.finish()
            else:
                connection.close()
