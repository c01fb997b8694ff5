"""A gateway worker: one process, one event loop, everything that serves requests.

`run` assembles the phases from the settings, serves the sockets that it inherits, and ends when it is told to drain
(SIGTERM), or at once when the supervisor is gone (the lifeline pipe ends).
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

from proxy.core.identity import IdentityNames, stripped_names
from proxy.core.model import Kind
from proxy.core.page import SLOT_EPOCH
from proxy.gateway.authenticate import Authenticator
from proxy.gateway.cache import GrantCache
from proxy.gateway.forward_auth import ForwardAuthPipeline
from proxy.gateway.link import AuthorityLink
from proxy.gateway.listen import Listener
from proxy.gateway.mutate import Mutator
from proxy.gateway.page import PageReader
from proxy.gateway.parse import HeadParser
from proxy.gateway.pipeline import Decider, ProxyPipeline
from proxy.gateway.record import Recorder
from proxy.gateway.resolve import SystemResolver
from proxy.gateway.respond import Responder
from proxy.gateway.watch import UpstreamWatch
from proxy.observe.logs import get_logger
from proxy.observe.snapshot import merge
from proxy.settings.addresses import Network
from proxy.settings.compile import identity_names, route_table, token_format
from proxy.settings.model import Settings, Tls

_SWEEP_SECONDS: Final = 0.5
_ABSENT_SECONDS: Final = 30.0
_BACKLOG: Final = 4096
_GREETING_SECONDS: Final = 0.6
"""How long connections wait in the inherited sockets' queues for the authority's greeting: without it a token cannot be
judged, but public routes need none, and a worker must be back within a second whether or not there is an authority."""
# Requests leave no reference cycles, so the collector has little to find; it must not walk a large cache often.
_GC_THRESHOLDS: Final = (50_000, 50, 1000)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's event loop where uvloop is installed, else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def run(
    settings: Settings,
    slot: int,
    proxy_fd: int,
    forward_auth_fd: int | None,
    lifeline_fd: int,
    ready_fd: int,
    pseudonym: str,
) -> int:
    """Serve until drained or cut off; the exit status. Descriptors are inherited: listening sockets and pipe ends.

    `pseudonym` is what all workers of this node call themselves in `Via`.
    """
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        worker = Worker(settings, slot, pseudonym)
        return runner.run(worker.serve(proxy_fd, forward_auth_fd, lifeline_fd, ready_fd))


class Worker:
    """The composition of one worker. Constructing it does no I/O."""

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
            prefix_heads=[f"{settings.brand}_{kind.value}" for kind in Kind],
        )
        self._tokens = tokens
        self._link = AuthorityLink(
            settings.data_dir / "link.sock", slot=slot, cache=self._cache, on_state=self._link_state
        )

    async def serve(self, proxy_fd: int, forward_auth_fd: int | None, lifeline_fd: int, ready_fd: int) -> int:
        """Serve the inherited sockets until told to stop."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            page = PageReader(settings.data_dir / "page")
            stack.callback(page.close)
            loop.add_signal_handler(signal.SIGTERM, self._stop.set)
            loop.add_reader(lifeline_fd, self._lifeline, lifeline_fd)
            stack.callback(loop.remove_reader, lifeline_fd)

            names = identity_names(settings)
            empty_lines = _empty_lines(names)
            routes = route_table(settings)
            authenticator = Authenticator(
                cache=self._cache,
                link=self._link,
                page=page.view.words,
                tokens=self._tokens,
                names=names,
                schemes=settings.credentials,
            )
            recorder = Recorder(
                routes.routes,
                self._log,
                prefix_of=authenticator.prefix_of,
                settings=settings.log,
                process=f"gateway-{self._slot}",
                workers=settings.workers,
            )
            responder = Responder(realm=settings.brand, basic="basic" in settings.credentials)
            proxy = ProxyPipeline(
                routes=routes,
                authenticator=authenticator,
                responder=responder,
                recorder=recorder,
                mutator=Mutator(
                    empty_lines=empty_lines,
                    foreign_credentials=authenticator.foreign_credentials,
                    pseudonym=self._pseudonym,
                ),
                upstreams=settings.upstreams,
            )
            stack.push_async_callback(proxy.close)
            self._cache.on_change = proxy.live.changed
            self._link.start()
            stack.push_async_callback(self._link.close)

            watch = UpstreamWatch(SystemResolver(), self._log)
            stack.push_async_callback(watch.close)
            await asyncio.gather(self._greeted(_GREETING_SECONDS), watch.prepare(proxy.upstreams, _GREETING_SECONDS))

            tls = settings.listen.proxy.tls
            listeners = [
                self._listener(
                    proxy, names, settings.listen.proxy.trusted, tls=tls is not None, pseudonym=self._pseudonym
                )
            ]
            servers = [await self._open(listeners[0], proxy_fd, _server_context(tls))]
            if forward_auth_fd is not None and settings.listen.forward_auth is not None:
                entry = ForwardAuthPipeline(
                    routes=routes,
                    authenticator=authenticator,
                    responder=responder,
                    recorder=recorder,
                    empty_lines=empty_lines,
                    max_request_line=settings.limits.request_line,
                )
                stack.push_async_callback(entry.close)
                listeners.append(self._listener(entry, names, settings.listen.forward_auth.trusted, tls=False))
                servers.append(await self._open(listeners[1], forward_auth_fd, None))

            def sweep() -> None:
                now = time.monotonic_ns()
                for listener in listeners:
                    listener.sweep(now)
                proxy.sweep(now / 1e9)
                watch.sweep(now / 1e9, proxy.upstreams)
                recorder.flush()
                lag = max(0, page.view.words[SLOT_EPOCH] - self._cache.applied)
                counted = recorder.snapshot(
                    hits=authenticator.hits, misses=authenticator.misses, entries=len(self._cache), lag=lag
                )
                self._link.send_counters(merge((counted, watch.snapshot())).to_wire())

            sweeper = asyncio.create_task(self._every(_SWEEP_SECONDS, sweep), name="sweep")
            stack.callback(sweeper.cancel)
            await self._announce(ready_fd)
            gc.collect()
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)
            await self._stop.wait()
            for server in servers:
                server.close()
            if not self._cut_off.is_set():
                await self._drain(listeners)
            sweep()
        return 0

    def _listener(
        self,
        pipeline: Decider,
        names: IdentityNames,
        trusted: tuple[Network, ...],
        *,
        tls: bool,
        pseudonym: bytes = b"",
    ) -> Listener:
        settings = self._settings
        limits, timeouts = settings.limits, settings.timeouts
        return Listener(
            pipeline=pipeline,
            parser=HeadParser(
                stripped=stripped_names(names),
                api_key="x-api-key" in settings.credentials,
                max_headers=limits.headers,
                max_request_line=limits.request_line,
                max_body=limits.body,
                pseudonym=pseudonym,
            ),
            trusted=trusted,
            # Eight random bytes tell this process's requests from those of any other.
            boot=secrets.token_hex(8).encode("ascii"),
            max_head=limits.header_bytes,
            max_request_line=limits.request_line,
            max_body=limits.body,
            head_seconds=timeouts.request_head,
            body_idle_seconds=timeouts.request_body_idle,
            keepalive_seconds=timeouts.keepalive,
            answer_seconds=60.0,
            tunnel_seconds=timeouts.tunnel,
            stream_seconds=timeouts.stream,
            tls=tls,
        )

    async def _open(self, listener: Listener, fd: int, context: ssl.SSLContext | None) -> asyncio.Server:
        bound = socket.socket(fileno=os.dup(fd))
        bound.setblocking(False)
        return await asyncio.get_running_loop().create_server(
            listener.connection, sock=bound, ssl=context, backlog=_BACKLOG
        )

    async def _announce(self, ready_fd: int) -> None:
        """Tell the supervisor that requests can be decided: the authority has greeted this worker, or it must go."""
        await self._greeted()
        os.write(ready_fd, b"ready\n")
        os.close(ready_fd)

    async def _greeted(self, seconds: float | None = None) -> None:
        """Return when the authority has greeted this worker, when it must go, or after `seconds`."""
        first = asyncio.create_task(self._first_link.wait(), name="first link")
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        await asyncio.wait((first, stop), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in (first, stop):
            task.cancel()

    async def _every(self, seconds: float, action: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                action()
            except Exception:  # noqa: BLE001 - one failed sweep must not end every deadline of this worker
                self._log.exception("a sweep failed")

    async def _drain(self, listeners: list[Listener]) -> None:
        """Let open exchanges finish, for at most the drain time."""
        for listener in listeners:
            listener.drain()
        waiting = [asyncio.create_task(listener.empty.wait(), name="drain") for listener in listeners]
        cut_off = asyncio.create_task(self._cut_off.wait(), name="cut off")
        drained = asyncio.gather(*waiting)
        await asyncio.wait(
            (drained, cut_off), timeout=self._settings.timeouts.drain, return_when=asyncio.FIRST_COMPLETED
        )
        cut_off.cancel()
        drained.cancel()
        await asyncio.gather(drained, cut_off, return_exceptions=True)
        for listener in listeners:
            for connection in list(listener.connections):
                connection.abort()

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


def _empty_lines(names: IdentityNames) -> bytes:
    return "".join(f"{name}: \r\n" for _, name in names.headers).encode("ascii")


def _server_context(tls: Tls | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(tls.certificate, tls.key)
    return context
