"""Reloading the configuration of a worker without losing a request: the supervisor's commands PREPARE to LEAVE.

Rules of this module:
1. Connections, caches, counters and exchanges stay; their configuration is replaced in one step of the event loop. No
   request is decided partly by one configuration and partly by another.
2. PREPARE does everything that can fail and changes nothing. From HOLD on no request starts and none is decided;
   requests that arrive wait. COMMIT replaces the configuration and ends the hold; ABORT only ends the hold.
3. Connections of ingresses end where new ones must show more: TLS, or a certificate of another CA.
4. An exchange that was decided continues as it was decided. Exchanges that are watched (``revalidate``) are judged
   again by the new configuration, and cut if it refuses them.
5. A COMMIT that fails leaves no configuration to run with: this process must end.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final, Protocol

from proxy.core.identity import IdentityOutputs
from proxy.core.ipc.child_protocol import CommandName, CommandRefused, ControlCommand
from proxy.core.routes import RouteTable
from proxy.gateway.downstream.acceptor import Accepting
from proxy.gateway.downstream.listener_factory import EXT_AUTHZ, PROXY, limits_of, patience, peer_secret
from proxy.gateway.forward_auth import ForwardAuthPipeline, PeerSecret
from proxy.gateway.grants.cache import GrantCache
from proxy.gateway.phases.authenticate import Authenticator
from proxy.gateway.phases.record import ExchangeRecorder
from proxy.gateway.phases.respond import Responder
from proxy.gateway.pipeline import Decider, ProxyPipeline
from proxy.gateway.upstream.pool import UpstreamPool
from proxy.observe import logs
from proxy.settings.boot import read_settings
from proxy.settings.compile import credential_places, identity_outputs, route_table
from proxy.settings.model import Settings
from proxy.settings.sections.listeners import IngressTls, Tls
from proxy.settings.sources.shared_secret import SharedSecretError

_RESOLVE_SECONDS: Final = 2.0
"""How long a reload waits for the addresses of new servers; requests to them get 502 until these are known."""


class ListeningServer(Protocol):
    """An acceptor of a listener's sockets."""

    def close(self) -> None:
        """Accept no more; open connections stay."""
        ...

    def abort(self) -> None:
        """Accept no more, and close the connections whose handshake is not complete."""
        ...


class ServedListener(Accepting, Protocol):
    """A listener, as far as reload and drain need it (``downstream.listener`` has the meanings)."""

    empty: asyncio.Event

    @property
    def connections(self) -> Collection[Any]: ...  # noqa: D102

    def sweep(self, now_ns: int) -> None: ...  # noqa: D102

    def follow(self, other: Any) -> None: ...  # noqa: D102

    def end_all(self) -> None: ...  # noqa: D102

    def hold(self) -> None: ...  # noqa: D102

    def release(self) -> None: ...  # noqa: D102

    def leave(self) -> None: ...  # noqa: D102

    def drain(self) -> None: ...  # noqa: D102

    def hang_up(self) -> None: ...  # noqa: D102


@dataclass(kw_only=True, slots=True)
class Port:
    """One listener of this worker, with its inherited sockets and its acceptors; ``terms`` as in ``tls_terms``."""

    listener: ServedListener
    fds: tuple[int, ...]
    servers: list[ListeningServer] = field(default_factory=list)
    terms: bytes | None = None

    def end_connections(self) -> None:
        """Close what was connected by terms that no longer hold."""
        for server in self.servers:
            server.abort()
        self.listener.end_all()

    def close(self) -> None:
        """Accept no more."""
        for server in self.servers:
            server.close()
        self.servers.clear()

    def sweep(self, now_ns: int) -> None:
        """End connections that have passed their deadline."""
        self.listener.sweep(now_ns)

    def give_back(self) -> None:
        """Close the inherited sockets too."""
        self.close()
        close_all(self.fds)
        self.fds = ()


@dataclass(kw_only=True, slots=True)
class Running:
    """The parts of a worker that depend on the configuration."""

    settings: Settings
    places: dict[str, int]
    """The index of every route so far by its name (``settings.compile.route_table``)."""
    cache: GrantCache
    authenticator: Authenticator
    recorder: ExchangeRecorder
    proxy: ProxyPipeline
    entries: dict[str, ForwardAuthPipeline]
    """The pipelines of the listeners for ingresses by name, present even without these."""
    ports: dict[str, Port]
    leaving: list[Port] = field(default_factory=list)
    """Listeners that were removed, with connections that have yet to end."""

    @property
    def deciders(self) -> dict[str, Decider]:
        """The pipeline of each listener by its name."""
        return {PROXY: self.proxy, **self.entries}


class ReloadableWorker(Protocol):
    """The worker, as far as a reload needs it."""

    running: Running

    def responder(self, settings: Settings) -> Responder:
        """The builder of the gateway's own responses."""
        ...

    def listener(self, name: str, pipeline: Decider, identity: IdentityOutputs, settings: Settings) -> ServedListener:
        """A listener of this name for the settings."""
        ...

    async def accept(self, name: str, port: Port, settings: Settings, context: ssl.SSLContext | None) -> None:
        """Accept from all sockets of ``port``, in place of its former acceptors."""
        ...

    async def resolve(self, upstreams: Sequence[UpstreamPool], seconds: float) -> None:
        """Resolve the addresses of new servers, within ``seconds``."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prepared:
    settings: Settings
    identity: IdentityOutputs
    routes: RouteTable
    upstreams: dict[str, UpstreamPool]
    contexts: dict[str, ssl.SSLContext | None]
    terms: dict[str, bytes | None]
    secrets: dict[str, PeerSecret | None]
    fds: dict[str, tuple[int, ...]]


class Reloader:
    """Carries out the supervisor's commands for one worker, one after the other."""

    def __init__(self, worker: ReloadableWorker, log: logs.Logger) -> None:
        self._worker = worker
        self._log = log
        self._prepared: _Prepared | None = None

    async def handle(self, command: ControlCommand) -> None:
        """Carry out one command. Raises PatgateError where that is not possible."""
        running = self._worker.running
        if command.name == CommandName.PREPARE:
            self._drop()
            self._prepared = await self._prepare(command)
            return
        close_all(command.fds)
        if command.name == CommandName.HOLD:
            for port in (*running.ports.values(), *running.leaving):
                port.listener.hold()
            for pipeline in running.deciders.values():
                pipeline.hold()
        elif command.name == CommandName.COMMIT:
            await self._commit()
        elif command.name == CommandName.ABORT:
            self._drop()
            self._release()
        elif command.name == CommandName.LEAVE:
            for port in running.ports.values():
                port.listener.leave()
        else:
            raise CommandRefused("the command is unknown")

    async def _prepare(self, command: ControlCommand) -> _Prepared:
        running = self._worker.running
        document, *sockets = command.fds
        fds: dict[str, tuple[int, ...]] = {}
        for name, fd in zip(command.details["sockets"], sockets, strict=True):
            fds[name] = (*fds.get(name, ()), fd)
        upstreams: dict[str, UpstreamPool] = {}
        try:
            # In a thread, because a large configuration takes longer than a request may wait.
            settings = await asyncio.to_thread(read_settings, document)
            if settings.listen.ext_authz is not None:
                await asyncio.to_thread(import_module, "proxy.gateway.ext_authz.listener")
            # The rest runs in the event loop, because it reads and extends state of the running configuration.
            routes = route_table(settings, running.places)
            upstreams = running.proxy.upstreams.prepare(settings.upstreams)
            contexts = {name: listener_context(name, settings) for name in running.deciders}
            terms = {name: tls_terms(name, settings) for name in running.deciders}
            secrets = {name: peer_secret(name, settings) for name in running.entries}
            await self._worker.resolve(tuple(upstreams.values()), _RESOLVE_SECONDS)
        except (OSError, ssl.SSLError, SharedSecretError) as error:
            running.proxy.upstreams.discard(upstreams)
            close_all(sockets)
            raise CommandRefused(f"a certificate, key or secret cannot be loaded ({type(error).__name__})") from error
        except BaseException:
            # Cancellations too: the error is raised again, and the descriptors must not stay open.
            close_all(sockets)
            raise
        return _Prepared(
            settings=settings,
            identity=identity_outputs(settings),
            routes=routes,
            upstreams=upstreams,
            contexts=contexts,
            terms=terms,
            secrets=secrets,
            fds=fds,
        )

    async def _commit(self) -> None:
        new, running, worker = self._prepared, self._worker.running, self._worker
        if new is None:
            raise CommandRefused("nothing was prepared")
        self._prepared = None
        settings = new.settings
        responder = worker.responder(settings)
        if running.authenticator.follow(new.identity, credential_places(settings), new.routes.routes):
            running.cache.reset(running.cache.applied)
        running.cache.resize(capacity=settings.cache.entries, absent_capacity=settings.cache.absent)
        running.recorder.follow(new.routes.routes, settings.log, settings.workers, settings.audit)
        running.proxy.follow(new.routes, responder, new.identity)
        running.proxy.upstreams.replace(new.upstreams)
        for name, entry in running.entries.items():
            entry.follow(new.routes, responder, new.identity)
            entry.limit(limits_of(name, settings).request_line, patience(name, settings), new.secrets[name])
        before, running.settings = running.settings, settings
        logs.change(level=settings.log.level, line_format=settings.log.format)
        await self._exchange_ports(new, before)
        self._release()
        self._log.info("configuration changed", routes=len(new.routes.routes), upstreams=len(new.upstreams))

    async def _exchange_ports(self, new: _Prepared, before: Settings) -> None:
        worker, running = self._worker, self._worker.running
        for name, pipeline in running.deciders.items():
            port, fds = running.ports.get(name), new.fds.get(name, ())
            if port is not None and not fds:
                del running.ports[name]
                port.give_back()
                port.listener.release()
                port.listener.drain()
                running.leaving.append(port)
            if not fds:
                continue
            listener = worker.listener(name, pipeline, new.identity, new.settings)
            context, terms = new.contexts[name], new.terms[name]
            if port is None:
                running.ports[name] = port = Port(listener=listener, fds=fds, terms=terms)
                await worker.accept(name, port, new.settings, context)
                continue
            port.listener.follow(listener)
            if name in running.entries and _excludes(terms, port.terms):
                port.end_connections()
            port.terms = terms
            if context is not None or _sockets(port.fds) != _sockets(fds) or _other_terms(before, new.settings):
                former, port.fds = port.fds, fds
                await worker.accept(name, port, new.settings, context)
                close_all(former)
            else:
                close_all(fds)

    def _release(self) -> None:
        running = self._worker.running
        for pipeline in running.deciders.values():
            pipeline.release()
        for port in (*running.ports.values(), *running.leaving):
            port.listener.release()

    def _drop(self) -> None:
        """Drop the prepared configuration."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            self._worker.running.proxy.upstreams.discard(prepared.upstreams)
            for fds in prepared.fds.values():
                close_all(fds)


def listener_context(name: str, settings: Settings) -> ssl.SSLContext | None:
    """The TLS context of the listener called ``name``; None without TLS. Raises OSError and ssl.SSLError."""
    listen = settings.listen
    if name == PROXY:
        return None if listen.proxy.tls is None else _server_context(listen.proxy.tls)
    own = dict(listen.for_ingresses()).get(name)
    if own is None or own.tls is None:
        return None
    tls = own.tls
    context = _server_context(tls)
    if name == EXT_AUTHZ:
        context.set_alpn_protocols(["h2"])
    if tls.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cafile=tls.client_ca)
        # A resumed session would not show its certificate again, to a worker that may trust other CAs by now.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def tls_terms(name: str, settings: Settings) -> bytes | None:
    """What the listener called ``name`` demands of a peer that connects. Raises OSError.

    None: nothing; b"": TLS; else a digest of the CA certificates, one of which must have issued the peer's.
    """
    own = dict(settings.listen.for_ingresses()).get(name)
    tls = settings.listen.proxy.tls if name == PROXY else None if own is None else own.tls
    if tls is None:
        return None
    ca = tls.client_ca if isinstance(tls, IngressTls) else None
    return b"" if ca is None else hashlib.sha256(ca.read_bytes()).digest()


def _excludes(terms: bytes | None, before: bytes | None) -> bool:
    """Whether a peer that has connected by the terms ``before`` might be unable to by ``terms``."""
    return terms not in (None, before) and (terms != b"" or before is None)


def _server_context(tls: Tls | IngressTls) -> ssl.SSLContext:
    """The TLS context of a listener with this certificate. Raises OSError and ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # Each ticket is a twentieth of a handshake's cost, and a resumed handshake gives the client its next one.
    context.num_tickets = 1
    # An empty password, so that an encrypted key is an error and not a prompt on the terminal.
    context.load_cert_chain(tls.certificate, tls.key, password="")
    return context


def close_all(fds: Sequence[int]) -> None:
    """Close inherited descriptors."""
    for fd in fds:
        os.close(fd)


def _other_terms(before: Settings, after: Settings) -> bool:
    """Whether the settings of acceptors have changed."""
    return (before.listen, before.limits, before.timeouts) != (after.listen, after.limits, after.timeouts)


def _sockets(fds: Sequence[int]) -> frozenset[int]:
    """The inodes of the sockets behind these descriptors."""
    return frozenset(os.fstat(fd).st_ino for fd in fds)
