"""A gateway worker: the process and event loop that serve requests.

``run`` assembles the phases from the settings, serves the inherited sockets, and ends with a drain on SIGTERM, or at
once when the supervisor has ended (the lifeline pipe is closed).
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final

from proxy.core.challenge import Challenges
from proxy.core.credential_places import AUTHORIZATION
from proxy.core.errors import ConfigurationError, ConfigurationProblem
from proxy.core.identity import IdentityOutputs
from proxy.core.ipc.child_protocol import CommandSource
from proxy.core.ipc.clock import boottime_ns
from proxy.core.ipc.shared_memory import SLOT_EPOCH
from proxy.core.kinds import WORDS
from proxy.gateway.downstream import listener_factory
from proxy.gateway.downstream.acceptor import AcceptCounters
from proxy.gateway.downstream.listener_factory import EXT_AUTHZ, FORWARD_AUTH
from proxy.gateway.ext_authz.errors import ErrorCounters
from proxy.gateway.forward_auth import ForwardAuthPipeline
from proxy.gateway.grants.authority_client import AuthorityLink
from proxy.gateway.grants.cache import GrantCache
from proxy.gateway.grants.expiry_clock import EXPIRY_CLOCK
from proxy.gateway.grants.page_reader import PageReader
from proxy.gateway.phases.authenticate import Authenticator
from proxy.gateway.phases.mutate import Mutator
from proxy.gateway.phases.record import ExchangeRecorder
from proxy.gateway.phases.respond import Responder
from proxy.gateway.pipeline import Decider, ProxyPipeline
from proxy.gateway.process.drain import drain
from proxy.gateway.process.reload import Port, Reloader, Running, ServedListener, listener_context, tls_terms
from proxy.gateway.upstream.dns import SystemResolver
from proxy.gateway.upstream.monitor import UpstreamWatch
from proxy.gateway.upstream.pool import UpstreamPool
from proxy.observe import defects
from proxy.observe.logs import get_logger
from proxy.observe.snapshot import Snapshot, merge
from proxy.settings.compile import (
    cors_sites,
    credential_places,
    identity_outputs,
    presented_fields,
    route_table,
    token_format,
)
from proxy.settings.model import Settings

_SWEEP_SECONDS: Final = 0.5
_ABSENT_SECONDS: Final = 30.0
_GREETING_SECONDS: Final = 0.6
"""How long connections wait in the inherited sockets' queues for the authority's greeting. Without it no token can be
verified, but public routes need none, and a worker must serve within a second with or without an authority."""
_LAST_REPORT_SECONDS: Final = 1.0
"""How long the last usage reports to the authority may take when the worker ends."""
# Requests leave no reference cycles, so the collector has little to find; it must not walk a large cache often.
_GC_THRESHOLDS: Final = (50_000, 50, 1000)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """The event loop of uvloop where that is installed, else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def run(
    settings: Settings,
    slot: int,
    sockets: Mapping[str, Sequence[int]],
    lifeline_fd: int,
    say_ready: Callable[[], object],
    pseudonym: str,
    orders: CommandSource,
) -> int:
    """Serve until drained or cut off, and return the exit status. Listening sockets and the lifeline are inherited.

    ``sockets`` are the listening sockets of each listener by its name; ``pseudonym`` is the name of all workers of this
    node in ``Via``; ``orders`` is the source of the supervisor's commands.
    """
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        worker = Worker(settings, slot, pseudonym)
        return runner.run(worker.serve(sockets, lifeline_fd, say_ready, orders))


class Worker:
    """The composition of one worker. Constructing it does no I/O."""

    running: Running

    def __init__(self, settings: Settings, slot: int, pseudonym: str) -> None:
        self._settings = settings
        self._pseudonym = pseudonym.encode("ascii")
        self._slot = slot
        self._log = get_logger("gateway", worker=slot)
        self._stop = asyncio.Event()
        self._cut_off = asyncio.Event()
        self._first_link = asyncio.Event()
        tokens = token_format(settings)
        self._cache = GrantCache(
            capacity=settings.cache.entries,
            absent_capacity=settings.cache.absent,
            absent_seconds=_ABSENT_SECONDS,
            credential_key=secrets.token_bytes(32),
            prefix_heads=[f"{settings.brand}_{word}" for word in WORDS],
        )
        self._tokens = tokens
        self._tally = AcceptCounters()
        self._call_errors = ErrorCounters()
        self._watch = UpstreamWatch(SystemResolver(), self._log)
        self._link = AuthorityLink(
            settings.data_dir / "link.sock", slot=slot, cache=self._cache, on_state=self._link_state
        )

    async def serve(
        self,
        sockets: Mapping[str, Sequence[int]],
        lifeline_fd: int,
        say_ready: Callable[[], object],
        orders: CommandSource,
    ) -> int:
        """Serve the inherited sockets until the worker is stopped."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        defects.install(loop)
        async with AsyncExitStack() as stack:
            page = PageReader(settings.data_dir / "page")
            stack.callback(page.close)
            EXPIRY_CLOCK.ahead = page.view.ahead
            loop.add_signal_handler(signal.SIGTERM, self._stop.set)
            loop.add_reader(lifeline_fd, self._lifeline, lifeline_fd)
            stack.callback(loop.remove_reader, lifeline_fd)

            self.running = running = self._assemble(settings, page)
            proxy = running.proxy
            stack.push_async_callback(proxy.close)
            for entry in running.entries.values():
                stack.push_async_callback(entry.close)
            self._link.start()
            stack.push_async_callback(self._link.close)

            stack.push_async_callback(self._watch.close)
            await asyncio.gather(
                self._greeted(_GREETING_SECONDS), self._watch.prepare(proxy.upstreams.pools, _GREETING_SECONDS)
            )
            await self._listen(sockets)

            def sweep() -> None:
                orders.beat()
                now, stamp = time.monotonic(), boottime_ns()
                EXPIRY_CLOCK.ahead = page.view.ahead
                for port in (*running.ports.values(), *running.leaving):
                    port.sweep(stamp)
                proxy.sweep(now)
                self._cache.sweep(now)
                self._watch.sweep(now, proxy.upstreams.pools)
                running.recorder.flush()
                running.recorder.trail.send(self._link)
                self._link.send_counters(self._counted(page).to_wire())

            sweeper = asyncio.create_task(every(_SWEEP_SECONDS, sweep), name="sweep")
            sweeper.add_done_callback(defects.noted)
            stack.callback(sweeper.cancel)
            orders.serve(Reloader(self, self._log).handle)
            stack.push_async_callback(orders.end)
            # The worker can decide requests once the authority has greeted it. One that must stop is ready as well.
            await self._greeted()
            say_ready()
            gc.collect()
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)
            await self._stop.wait()
            if not self._cut_off.is_set():
                await drain(running, self._cut_off)
            sweep()
            await running.recorder.trail.send_all(self._link, _LAST_REPORT_SECONDS)
        return 0

    def _assemble(self, settings: Settings, page: PageReader) -> Running:
        """Assemble everything between the sockets and the backends."""
        identity = identity_outputs(settings)
        places: dict[str, int] = {}
        routes = route_table(settings, places)
        authenticator = Authenticator(
            cache=self._cache,
            link=self._link,
            page=page.view.words,
            tokens=self._tokens,
            identity=identity,
            places=credential_places(settings),
            routes=routes.routes,
        )
        recorder = ExchangeRecorder(
            routes.routes,
            self._log,
            prefix_of=authenticator.prefix_of,
            settings=settings.log,
            audit=settings.audit,
            process=f"gateway-{self._slot}",
            workers=settings.workers,
        )
        responder = self.responder(settings)
        proxy = ProxyPipeline(
            routes=routes,
            authenticator=authenticator,
            responder=responder,
            recorder=recorder,
            identity=identity,
            mutator=Mutator(foreign_credentials=authenticator.foreign_credentials, pseudonym=self._pseudonym),
            upstreams=settings.upstreams,
        )
        self._cache.on_change = proxy.live.changed

        def entry(name: str) -> ForwardAuthPipeline:
            try:
                secret = listener_factory.peer_secret(name, settings)
            except (OSError, ValueError):
                raise _unusable(f"{name}.secret.file", "the secret cannot be read") from None
            return ForwardAuthPipeline(
                routes=routes,
                authenticator=authenticator,
                responder=responder,
                recorder=recorder,
                identity=identity,
                max_request_line=listener_factory.limits_of(name, settings).request_line,
                patience=listener_factory.patience(name, settings),
                secret=secret,
            )

        return Running(
            settings=settings,
            places=places,
            cache=self._cache,
            authenticator=authenticator,
            recorder=recorder,
            proxy=proxy,
            entries={FORWARD_AUTH: entry(FORWARD_AUTH), EXT_AUTHZ: entry(EXT_AUTHZ)},
            ports={},
        )

    async def _listen(self, sockets: Mapping[str, Sequence[int]]) -> None:
        running, settings = self.running, self._settings
        identity = identity_outputs(settings)
        for name, fds in sockets.items():
            if fds:
                listener = self.listener(name, running.deciders[name], identity, settings)
                running.ports[name] = port = Port(listener=listener, fds=tuple(fds))
                try:
                    context = listener_context(name, settings)
                    port.terms = tls_terms(name, settings)
                except (OSError, ValueError):
                    # They were valid when patgate started; this process started later, when they were not any more.
                    message = "a certificate, its key or client_ca cannot be read, or is not in PEM form"
                    raise _unusable(f"{name}.tls", message) from None
                await self.accept(name, port, settings, context)

    def _counted(self, page: PageReader) -> Snapshot:
        running = self.running
        lag = max(0, page.view.words[SLOT_EPOCH] - self._cache.applied)
        authenticator = running.authenticator
        counted = running.recorder.snapshot(
            hits=authenticator.hits, misses=authenticator.misses, entries=len(self._cache), lag=lag
        )
        others = (self._watch, self._tally, self._call_errors)
        return merge((counted, *(each.snapshot() for each in others), defects.snapshot()))

    def responder(self, settings: Settings) -> Responder:
        """The builder of the gateway's own responses."""
        challenges = Challenges(realm=settings.brand, places=credential_places(settings))
        return Responder(challenges=challenges, cors=cors_sites(settings), refusals=settings.refusals)

    async def resolve(self, upstreams: Sequence[UpstreamPool], seconds: float) -> None:
        """Resolve the addresses of new servers, within ``seconds``."""
        await self._watch.prepare(upstreams, seconds)

    def listener(self, name: str, pipeline: Decider, identity: IdentityOutputs, settings: Settings) -> ServedListener:
        """A listener of this name for the settings."""
        made = listener_factory.listener(name, pipeline, identity, settings, pseudonym=self._pseudonym)
        if name != EXT_AUTHZ:
            return made
        # Only with this listener: the libraries are an extra, and take memory.
        from proxy.gateway.ext_authz.listener import EnvoyListener

        return EnvoyListener(
            inner=made,
            stripped=identity.stripped | listener_factory.folded(settings.headers.dropped),
            places=presented_fields(settings, websocket=False) | {AUTHORIZATION},
            secret_name=b"".join(listener_factory.secret_names(settings, name)),
            errors=self._call_errors,
        )

    async def accept(self, name: str, port: Port, settings: Settings, context: ssl.SSLContext | None) -> None:
        """Accept from all sockets of ``port``, in place of its former acceptors."""
        former = list(port.servers)
        acceptor = listener_factory.acceptor(
            name, port.listener, port.fds, settings, context, tally=self._tally, log=self._log
        )
        acceptor.start()
        port.servers[:] = [acceptor]
        for server in former:
            server.close()

    async def _greeted(self, seconds: float | None = None) -> None:
        """Return when the authority has greeted this worker, when the worker must stop, or after ``seconds``."""
        first = asyncio.create_task(self._first_link.wait(), name="first link")
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        await asyncio.wait((first, stop), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in (first, stop):
            task.cancel()

    def _lifeline(self, fd: int) -> None:
        if not os.read(fd, 1):
            asyncio.get_running_loop().remove_reader(fd)
            self._cut_off.set()
            self._stop.set()

    def _link_state(self, up: bool) -> None:
        if up:
            self._first_link.set()
            self._log.info("link to the authority is up", epoch=self._cache.applied)
        elif not self._stop.is_set():
            self._log.warning("link to the authority is down")


def _unusable(setting: str, message: str) -> ConfigurationError:
    return ConfigurationError((ConfigurationProblem(path=f"listen.{setting}", line=None, message=message),))


async def every(seconds: float, action: Callable[[], None]) -> None:
    """Run ``action`` again and again, so many seconds apart; one that fails is reported, and the next one comes."""
    while True:
        await asyncio.sleep(seconds)
        try:
            action()
        except Exception as error:  # noqa: BLE001 - one failed sweep must not end every deadline of this worker
            defects.report("a sweep failed", error)
