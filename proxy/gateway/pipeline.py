"""Runs the phases of a request in their one order, and ends exchanges.

    listen → parse → route → authenticate → authorise → second target → mutate → forward → relay → record

``listen`` and ``parse`` have filled the exchange before ``begin`` receives it. A phase returns None to continue, or the
reason for a refusal; it writes nothing to the client. On a cache hit all phases up to the write to the upstream run
inside ``begin``, without a task, an await or a lock.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final

from proxy.core.identity import IdentityOutputs
from proxy.core.ipc.clock import boottime_ns
from proxy.core.model import Access
from proxy.core.reasons import TABLE, Reason
from proxy.core.request.cors import CorsPolicy, CorsRequest
from proxy.core.request.request_reading import TOKEN, judge, only_reported
from proxy.core.routes import RouteTable
from proxy.gateway.backend_identity import BackendIdentity, backend_identity
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.expiry_clock import EXPIRY_CLOCK
from proxy.gateway.phases.authenticate import PENDING, Authenticator
from proxy.gateway.phases.authorise import authorise
from proxy.gateway.phases.forward import Forwarder
from proxy.gateway.phases.mutate import Mutator, forwarded_host
from proxy.gateway.phases.record import ExchangeRecorder
from proxy.gateway.phases.relay import Relay
from proxy.gateway.phases.respond import Responder
from proxy.gateway.phases.revalidate import LiveExchanges
from proxy.gateway.phases.route import route, route_by
from proxy.gateway.phases.second_target import second_target
from proxy.gateway.upstream.pool import UpstreamConnection
from proxy.gateway.upstream.registry import UpstreamSet
from proxy.observe import defects
from proxy.settings.sections.upstreams import Upstream as UpstreamSettings

# A call through the module, ``time.x()``, costs twice as much.
_now_ns: Final = boottime_ns
# Looking a member up in its enumeration costs more than the comparison with it.
_TOKEN: Final = Access.TOKEN


class Decider(ABC):
    """The phases up to the verdict, shared by the proxy and the forward-auth entry."""

    def __init__(
        self,
        *,
        routes: RouteTable,
        authenticator: Authenticator,
        responder: Responder,
        recorder: ExchangeRecorder,
        identity: IdentityOutputs,
    ) -> None:
        self.routes = routes
        self.authenticator = authenticator
        self.responder = responder
        self.recorder = recorder
        self.identity = self.identity_from(identity)
        self.patience: float | None = None
        """Seconds to wait for the authority's answer about a credential; None: only the link's own deadlines apply."""
        self._settling: set[asyncio.Task[None]] = set()
        self._generation = 0
        self._held = False
        self._postponed: list[Exchange] = []

    def begin(self, x: Exchange) -> None:
        """Decide a parsed request: at once on a cache hit, else in a task that asks the authority."""
        cors = x.cors
        if cors is not None and cors.method is not None and self._preflight(x, cors):
            return
        reason = route(self.routes, x)
        requirement = x.requirement
        if requirement is not None:
            reason = route_by(requirement, x, reason)
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
        """Decide nothing until ``release``: requests whose lookup finishes meanwhile are postponed."""
        self._held = True

    def release(self) -> None:
        """Resume deciding, and decide every postponed request from the beginning."""
        self._held = False
        postponed, self._postponed = self._postponed, []
        for x in postponed:
            self._restart(x)

    def follow(self, routes: RouteTable, responder: Responder, identity: IdentityOutputs) -> None:
        """Decide by these from now on, including requests that still wait for the authority."""
        self.routes = routes
        self.responder = responder
        self.identity = self.identity_from(identity)
        self._generation += 1

    def _preflight(self, x: Exchange, cors: CorsRequest) -> bool:
        """Answer ``x`` or pass it on, if it is a preflight (Fetch standard) that a CORS policy covers.

        The route is that of the request which the browser asks about. A preflight that passes runs as OPTIONS, so it is
        also refused where a route refuses that. A browser sends no credential and no body with a preflight, so anything
        that has one is judged like every other request.
        """
        origin, method = cors.origin, cors.method
        if x.method != b"OPTIONS" or origin is None or method is None or x.misplaced:
            return False
        if x.authorization is not None or x.presented is not None or x.body is not None:
            return False
        if TOKEN.fullmatch(method) is None:
            return False
        match, reason = judge(self.routes, method, x.host_name, x.path, x.query)
        policy = self.responder.cors.policy(match, x.host_name)
        if policy is None or (policy.answers and not self.answers_preflights()):
            return False
        if not policy.answers and reason is None:
            runs, why = judge(self.routes, x.method, x.host_name, x.path, x.query)
            if runs is not None and why is not None:
                match, reason = runs, why
        x.match = match
        if policy.answers:
            if policy.allows(origin):
                self._answer_preflight(x, policy, origin)
            else:
                self.refuse(x, Reason.ORIGIN_REFUSED)
        elif reason is not None:
            self.refuse(x, reason)
        else:
            self._judge(x, None)
        return True

    def _answer_preflight(self, x: Exchange, policy: CorsPolicy, origin: bytes) -> None:
        client = x.client
        if client is None:
            return
        if client.draining:
            x.keep_alive = False
        x.status = 204
        client.respond(x, self.responder.preflight(x, policy, origin))

    def answers_preflights(self) -> bool:
        """Whether a preflight that this entry answers ends there."""
        return True

    @abstractmethod
    def identity_from(self, outputs: IdentityOutputs) -> BackendIdentity:
        """Which lines of these outputs this entry sends."""

    @abstractmethod
    def allowed(self, x: Exchange) -> None:
        """Continue ``x``, which may pass."""

    def refuse(self, x: Exchange, reason: Reason) -> None:
        """End ``x`` with the response for ``reason``."""
        client = x.client
        if client is None:
            return
        x.reason = reason
        x.status = TABLE[reason].status
        if not x.body_done or client.draining:
            # The rest of the body must never be read as the next request.
            x.keep_alive = False
        client.respond(x, self.refusal(x, reason))

    def refuse_head(self, x: Exchange, reason: Reason, head: bytes) -> None:
        """End ``x``, whose ``head`` (or the part of it that has arrived) cannot be read."""
        del head
        self.refuse(x, reason)

    def refusal(self, x: Exchange, reason: Reason) -> bytes:
        """The response to ``x`` for ``reason``."""
        return self.responder.refusal(x, reason)

    def complete(self, x: Exchange) -> None:
        """Record ``x``, and let its client connection read the next request."""
        client = x.client
        if client is None:
            return
        now_ns = _now_ns()
        self.recorder.record(x, now_ns)
        x.client = None
        client.finished(x, now_ns)

    def body(self, x: Exchange, pieces: list[bytes]) -> None:
        """Take more of the request body. Without an upstream it is discarded."""
        del x, pieces

    def left(self, x: Exchange) -> None:
        """Record ``x``, whose client disconnected before the response was complete."""
        if x.reason is None and not x.tunnel:
            x.reason = Reason.CLIENT_LEFT
            x.status = TABLE[Reason.CLIENT_LEFT].status
        self.recorder.record(x, _now_ns())
        x.client = None

    def count_connection(self, change: int) -> None:
        """A client connection was opened (1) or closed (-1)."""
        self.recorder.connections += change

    def timed_out(self, x: Exchange) -> None:
        """End ``x``, whose deadline has passed."""
        self.refuse(x, Reason.REQUEST_TIMEOUT)

    async def close(self) -> None:
        """Cancel the tasks that wait for the authority."""
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)

    def _judge(self, x: Exchange, reason: Reason | None) -> None:
        """Allow or refuse ``x``: ``reason`` is the verdict on its own target; its second targets are judged here."""
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
        """The verdict on the resources that fields of ``x`` name.

        A refusal sets ``x.match`` to the match that refuses, so that challenge, log and audit name that one.
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
        """The values of ``Host`` that name this host when a client uses them in other fields."""
        return (x.host,)

    def compares_ports(self) -> bool:
        """Whether the host of a second target must also have the request's port."""
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
            self._restart(x)
        elif x.client is not None:
            self._judge(x, authorise(x) if reason is None else reason)

    def _restart(self, x: Exchange) -> None:
        """Decide ``x`` from the beginning, by the current configuration."""
        if x.client is not None:
            x.entry = None
            # As if it had just arrived, so that the lease is checked again.
            x.started = _now_ns()
            Decider.begin(self, x)

    def hang_up(self, x: Exchange) -> None:
        """End a WebSocket exchange, which has no end of its own, as if both sides had closed it."""
        self.complete(x)


class ProxyPipeline(Decider):
    """The reverse proxy: forwards allowed requests to their upstream."""

    def __init__(
        self,
        *,
        routes: RouteTable,
        authenticator: Authenticator,
        responder: Responder,
        recorder: ExchangeRecorder,
        identity: IdentityOutputs,
        mutator: Mutator,
        upstreams: Mapping[str, UpstreamSettings],
    ) -> None:
        super().__init__(
            routes=routes, authenticator=authenticator, responder=responder, recorder=recorder, identity=identity
        )
        self._mutator = mutator
        self._forwarder = Forwarder(fail=self.fail)
        self.live = LiveExchanges(judge=self._judge_again, cut=self.fail)
        self._relay = Relay(self)
        self.upstreams = UpstreamSet(upstreams, self._relay)

    def hold(self) -> None:
        """Decide nothing, and judge no running exchange, until ``release``."""
        super().hold()
        self.live.held = True

    def release(self) -> None:
        """Resume deciding, and judge every running exchange again."""
        super().release()
        # Running exchanges are judged again by the current configuration.
        self.live.held = False
        self.live.judge_all()

    def identity_from(self, outputs: IdentityOutputs) -> BackendIdentity:
        """Nothing on open routes: their backends do not read identity headers, and clients' are stripped."""
        return backend_identity(outputs, on_open_routes=False)

    def allowed(self, x: Exchange) -> None:
        """Build the upstream head and forward ``x``."""
        assert x.match is not None
        x.upstream = upstream = self.upstreams.pool(x.match.route.upstream)
        client = x.client
        assert client is not None
        responder = self.responder
        if responder.cors.owns:
            self._own_cors(x, responder)
        if x.body_done:
            client.deadline = x.started + upstream.response_ns
        else:
            self.live.watch(x)
        self._mutator.mutate(x, self.identity.lines(x), upstream.edits)
        self._forwarder.forward(x)

    @staticmethod
    def _own_cors(x: Exchange, responder: Responder) -> None:
        """Set the CORS lines that replace the backend's, where patgate answers preflights."""
        policy = responder.cors.policy(x.match, x.host_name)
        if policy is not None and policy.answers:
            cors = x.cors
            if cors is None:
                x.cors = cors = CorsRequest()
            cors.lines = policy.response_lines(cors.origin)

    def hosts(self, x: Exchange) -> tuple[bytes, ...]:
        """The request's ``Host``, and that of a trusted peer's ``X-Forwarded-Host``."""
        return (x.host,) if x.forwarded is None else (x.host, forwarded_host(x, x.forwarded))

    def body(self, x: Exchange, pieces: list[bytes]) -> None:
        """Send more of the request body to the upstream."""
        self._forwarder.send_body(x, pieces)

    def streaming(self, x: Exchange) -> None:
        """Watch ``x``, whose response takes long."""
        self.live.watch(x)

    def refuse(self, x: Exchange, reason: Reason) -> None:
        """End ``x`` with the response for ``reason``, without its upstream."""
        self._detach(x)
        super().refuse(x, reason)

    def complete(self, x: Exchange) -> None:
        """Record ``x``, stop watching it, and let its client connection read the next request."""
        entry = x.entry
        if entry is not None and entry.live is not None:
            self.live.forget(x)
        super().complete(x)

    def left(self, x: Exchange) -> None:
        """Record ``x``, whose client disconnected, and close its upstream connection."""
        self.live.forget(x)
        self._detach(x)
        super().left(x)

    def timed_out(self, x: Exchange) -> None:
        """End ``x``, whose deadline has passed, for the reason that caused the delay."""
        client = x.client
        if client is not None and client.full and x.response_started:
            # A client that has left its response unread for so long counts as disconnected.
            self.fail(x, Reason.CLIENT_LEFT)
        # A client that is not being read from, because the backend does not read, has not caused the delay.
        elif not x.body_done and (client is None or not client.paused):
            self.fail(x, Reason.REQUEST_TIMEOUT)
        elif x.upstream is None:
            self.fail(x, Reason.AUTHORITY_UNAVAILABLE)
        else:
            self.fail(x, Reason.UPSTREAM_TIMEOUT)

    def fail(self, x: Exchange, reason: Reason) -> None:
        """End ``x`` with the response for ``reason``, or break the connection if a response has begun."""
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
        """Send ``x`` again on a new connection if that is safe; False if it is not."""
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
        """End a WebSocket exchange, and close its upstream connection."""
        self._detach(x)
        super().hang_up(x)

    def sweep(self, now: float) -> None:
        """Cut exchanges whose token or lease has expired, and close upstream connections that have been idle too long.

        ``now`` is in monotonic seconds.
        """
        if self.live:
            self.live.sweep(time.time() + EXPIRY_CLOCK.ahead, lease_held=self.authenticator.lease_held)
        self.upstreams.sweep(now)

    async def close(self) -> None:
        """Cancel all tasks and close all idle upstream connections."""
        await super().close()
        await self.live.close()
        await self._forwarder.close()
        self.upstreams.close()

    @staticmethod
    def _detach(x: Exchange) -> None:
        """Close the upstream connection of ``x``, if it has one, because bytes of ``x`` may still be on it."""
        connection = x.upstream_connection
        if connection is not None:
            x.upstream_connection = None
            connection.server.active -= 1
            if x.tunnel and x.reason is None:
                connection.finish()
            else:
                connection.close()
