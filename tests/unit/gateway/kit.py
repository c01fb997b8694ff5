"""A gateway worker's request path on loopback sockets, in the test's own event loop, and a scripted backend.

Only parts outside the worker are replaced: the authority is absent (the test puts grants into the cache, and the link
has its key but no connection) or scripted (``scripted.py``), and the shared memory page is a bytearray.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, Literal

from proxy.core.identity import PRESETS, IdentityHeaders, IdentityOutputs
from proxy.core.ipc.clock import boottime_ns
from proxy.core.ipc.shared_memory import PAGE_SIZE, SLOT_EPOCH, SLOT_LEASE, PageView
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Access, Grant, OrgGrant
from proxy.core.permissions import PermissionSet
from proxy.core.request.claims import fold
from proxy.core.request.cors import CorsPolicy, CorsSites
from proxy.core.routes import Route, RouteTable
from proxy.core.token import Minted, TokenFormat, digest
from proxy.gateway.downstream.acceptor import AcceptCounters, Acceptor
from proxy.gateway.downstream.limits import DownstreamLimits, nanoseconds
from proxy.gateway.downstream.listener import Listener
from proxy.gateway.grants.authority_client import AuthorityLink
from proxy.gateway.grants.cache import GrantCache
from proxy.gateway.phases.authenticate import Authenticator
from proxy.gateway.phases.mutate import Mutator
from proxy.gateway.phases.parse import HeadParser
from proxy.gateway.phases.record import ExchangeRecorder
from proxy.gateway.pipeline import ProxyPipeline
from proxy.observe.logs import get_logger
from proxy.settings.addresses import ServerAddress as Address
from proxy.settings.model import Log
from proxy.settings.sections.routes import Headers
from proxy.settings.sections.upstreams import Upstream as UpstreamSettings
from tests.support.process import HANGS_SECONDS
from tests.unit.authority.waiting import until as until
from tests.unit.gateway.backend import HOST as HOST
from tests.unit.gateway.backend import Backend as Backend
from tests.unit.gateway.backend import BackendConnection as BackendConnection
from tests.unit.gateway.backend import Handler as Handler
from tests.unit.gateway.backend import answering as answering
from tests.unit.gateway.backend import response as response
from tests.unit.gateway.client import Answer as Answer
from tests.unit.gateway.client import Client as Client
from tests.unit.gateway.client import reset as reset
from tests.unit.gateway.places import places_of as places_of
from tests.unit.gateway.places import presented_by
from tests.unit.gateway.places import responder as responder

IDENTITY: Final = IdentityOutputs((IdentityHeaders(PRESETS["patgate"]),))
TOKENS: Final = TokenFormat("acme")
CACHE_KEY: Final = bytes(range(32))
FAR: Final = 2**62
NEVER: Final = 86_400.0
"""Seconds of every limit that a test does not set: longer than ``until`` waits, so that no such limit ends the wait."""
PSEUDONYM: Final = b"patgate-0123abcd"


def make_grant(
    minted: Minted,
    *,
    kind: Kind = Kind.PAT,
    user: str = "usr1",
    role: str = "admin",
    permissions: Iterable[str] = ("*:*",),
    scopes: Iterable[str] | None = None,
    expires_at: float | None = None,
    verified: bool = True,
    cache_key: bytes = CACHE_KEY,
    token_name: str = "laptop",
    reach: Reach = Reach.PERSONAL,
    orgs: Mapping[str, OrgGrant] | None = None,
    depends: Iterable[str] = (),
) -> Grant:
    return Grant(
        prefix=minted.prefix,
        token_id=minted.token_id,
        kind=kind,
        token_name=token_name,
        digest=digest(cache_key, minted.token.encode()) if verified else None,
        user_id=user,
        email=f"{user}@example.com",
        org_id="",
        org_name="",
        reach=reach,
        role=role,
        permissions=PermissionSet.of(permissions),
        scopes=None if scopes is None else PermissionSet.of(scopes),
        expires_at=expires_at,
        depends=(f"token:{minted.token_id}", f"user:{user}", f"role:{role}", *depends),
        orgs=orgs,
    )


def make_page(*, epoch: int = 0, lease_until_ns: int = FAR) -> memoryview[int]:
    page = PageView.format(memoryview(bytearray(PAGE_SIZE)), 1)
    page.words[SLOT_EPOCH] = epoch
    page.words[SLOT_LEASE] = lease_until_ns
    return page.words


def make_cache(*, capacity: int = 1000) -> GrantCache:
    return GrantCache(
        capacity=capacity,
        absent_capacity=1000,
        absent_seconds=30.0,
        credential_key=b"k" * 32,
        prefix_heads=[f"acme_{kind.value}" for kind in Kind],
    )


@dataclass(frozen=True, kw_only=True)
class Entrance:
    """How the gateway's socket accepts connections; the defaults accept every client immediately."""

    connections: int = 1000
    introduced_by: tuple[str, ...] = ()
    handshake_seconds: float = NEVER
    context: ssl.SSLContext | None = None
    seen_by_acceptor: Callable[[Listener], Any] = lambda listener: listener
    """Returns the object that the acceptor uses instead of the listener."""


async def still(value: Callable[[], object]) -> None:
    """Return once ``value()`` has stayed the same for a while."""
    last, unchanged = value(), 0
    async with asyncio.timeout(HANGS_SECONDS):
        while unchanged < 30:
            await asyncio.sleep(0.01)
            now = value()
            unchanged = unchanged + 1 if now == last else 0
            last = now


def task_runs(name: str) -> bool:
    """Whether a task with this name is running."""
    return any(task.get_name() == name for task in asyncio.all_tasks())


class Gateway:
    """The request path of one worker, assembled as ``worker.Worker`` does it, on a loopback port."""

    def __init__(
        self,
        *ports: int,
        routes: Iterable[Route] | None = None,
        link_path: Path | None = None,
        page: memoryview[int] | None = None,
        max_head: int = 32 * 1024,
        max_headers: int = 100,
        max_request_line: int = 8 * 1024,
        max_body: int | None = None,
        head_seconds: float = NEVER,
        body_idle_seconds: float = NEVER,
        keepalive_seconds: float = NEVER,
        answer_seconds: float = NEVER,
        tunnel_seconds: float = NEVER,
        stream_seconds: float = NEVER,
        connect_timeout: float = NEVER,
        response_timeout: float = NEVER,
        preserve_host: bool = True,
        max_idle: int = 64,
        trusted: Iterable[str] = (),
        credentials: Iterable[str | dict[str, str]] = ("bearer", "basic", "x-api-key"),
        cors: Iterable[tuple[str | None, CorsPolicy]] = (),
        access: Literal["off", "refusals", "all"] = "refusals",
        upstream: UpstreamSettings | None = None,
        identity: IdentityOutputs = IDENTITY,
        client_rate: int = 0,
        drop_misplaced: bool = False,
        believed: Iterable[str] = (),
        half_close: bool = False,
        entrance: Entrance | None = None,
        cache_capacity: int = 1000,
        describing: Iterable[bytes] = (),
    ) -> None:
        places = places_of(*credentials)
        self._facts = entrance or Entrance()
        self.identity = identity
        self.page = make_page() if page is None else page
        self.cache = make_cache(capacity=cache_capacity)
        self.link = AuthorityLink(link_path or Path("/nonexistent"), slot=0, cache=self.cache)
        if link_path is None:
            self.cache.reset(self.page[SLOT_EPOCH])
            self.link.cache_key = CACHE_KEY
        self._linked = link_path is not None
        table = RouteTable(default_routes() if routes is None else routes)
        self.authenticator = Authenticator(
            cache=self.cache,
            link=self.link,
            page=self.page,
            tokens=TOKENS,
            identity=identity,
            places=places,
            routes=table.routes,
        )
        sites = CorsSites(cors, [route.cors for route in table.routes])
        self.access: list[dict[str, Any]] = []
        self.recorder = ExchangeRecorder(
            table.routes,
            get_logger("test"),
            prefix_of=self.authenticator.prefix_of,
            settings=Log(access=access),
            write=lambda lines: self.access.extend(map(json.loads, lines.splitlines())),
        )
        self.pipeline = ProxyPipeline(
            routes=table,
            authenticator=self.authenticator,
            responder=responder(*credentials, cors=sites),
            recorder=self.recorder,
            identity=identity,
            mutator=Mutator(foreign_credentials=self.authenticator.foreign_credentials, pseudonym=PSEUDONYM),
            upstreams={
                "app": upstream
                or UpstreamSettings(
                    servers=tuple(Address.parse(f"http://{HOST}:{port}") for port in ports),
                    connect_timeout=connect_timeout,
                    response_timeout=response_timeout,
                    idle_timeout=NEVER,
                    preserve_host=preserve_host,
                    max_idle=max_idle,
                )
            },
        )
        self.cache.on_change = self.pipeline.live.changed
        self.listener = Listener(
            pipeline=self.pipeline,
            parser=HeadParser(
                stripped=identity.stripped,
                presented=presented_by(places, table.routes),
                cors=sites.on,
                search=self.authenticator.search,
                second_targets=frozenset(fold(name.encode()) for name in Headers().second_targets),
                believed=frozenset(fold(name.encode()) for name in believed),
                describing=describing,
                drop_misplaced=drop_misplaced,
                max_headers=max_headers,
                max_request_line=max_request_line,
                max_body=max_body,
                pseudonym=PSEUDONYM,
            ),
            trusted=[ip_network(text) for text in trusted],
            boot=b"0123456789abcdef",
            limits=DownstreamLimits(
                max_head=max_head,
                max_request_line=max_request_line,
                max_body=max_body,
                handshake_ns=nanoseconds(self._facts.handshake_seconds),
                head_ns=nanoseconds(head_seconds),
                body_idle_ns=nanoseconds(body_idle_seconds),
                keepalive_ns=nanoseconds(keepalive_seconds),
                answer_ns=nanoseconds(answer_seconds),
                tunnel_ns=nanoseconds(tunnel_seconds),
                stream_ns=nanoseconds(stream_seconds),
                client_rate=client_rate,
                half_close=half_close,
            ),
            tls=self._facts.context is not None,
        )
        self.port = 0
        self.clients: list[Client] = []

    def admit(self, **facts: Any) -> Minted:
        """Create a token, and put its grant into the cache."""
        minted = TOKENS.mint(facts.get("kind", Kind.PAT))
        grant = make_grant(minted, **facts)
        self.cache.store(grant, self.identity)
        return minted

    async def client(self, *, receive_buffer: int | None = None) -> Client:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (HOST, self.port))
        reader, writer = await asyncio.open_connection(
            sock=sock, limit=2**20 if receive_buffer is None else receive_buffer
        )
        client = Client(reader, writer)
        self.clients.append(client)
        return client

    async def start(self) -> None:
        bound = socket.create_server((HOST, 0), backlog=1000)
        self.tally = AcceptCounters()
        self.port = bound.getsockname()[1]
        self.acceptor = Acceptor(
            self._facts.seen_by_acceptor(self.listener),
            [bound],
            name="proxy",
            limit=self._facts.connections,
            context=self._facts.context,
            introduced_by=[ip_network(text) for text in self._facts.introduced_by],
            tally=self.tally,
            log=get_logger("test"),
        )
        self.acceptor.start()
        if self._linked:
            self.link.start()
        self.sweeps = 0
        self.sweep_on()

    def sweep_on(self) -> None:
        """Check deadlines, at the start and after ``stop_sweeping``."""
        self._sweeper = asyncio.create_task(self._sweep(), name="sweep")

    def stop_sweeping(self) -> None:
        """Check no deadlines, so that a busy machine misses none until ``sweep_on``."""
        self._sweeper.cancel()

    async def close(self) -> None:
        self.acceptor.abort()
        self.stop_sweeping()
        for client in self.clients:
            # In Python 3.11.2 a TLS transport that was closed twice has no protocol left, and ``abort`` fails.
            with suppress(AttributeError):
                client.writer.transport.abort()
        for connection in list(self.listener.connections):
            connection.abort()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        await self.pipeline.close()
        await self.link.close()
        await until(lambda: not self.listener.connections)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self.listener.sweep(boottime_ns())
            self.pipeline.sweep(time.monotonic())
            self.recorder.flush()
            self.sweeps += 1

    @property
    def idle(self) -> int:
        """Idle upstream connections."""
        return sum(len(server.idle) for pool in self.pipeline.upstreams.pools for server in pool.servers)

    @property
    def active(self) -> int:
        """Upstream exchanges that are counted as open."""
        return sum(server.active for pool in self.pipeline.upstreams.pools for server in pool.servers)


def make_route(path: str, access: Access, *, index: int = 0, **more: Any) -> Route:
    facts: dict[str, Any] = {
        "entity": None, "operations": {}, "methods": None, "host": None, "allow": 0, "enforce": True,
    }  # fmt: skip
    return Route(index=index, path=path, upstream="app", access=access, **{**facts, **more})


def default_routes() -> list[Route]:
    return [
        make_route("/open/**", Access.PUBLIC, index=0),
        make_route("/ui/**", Access.PASSTHROUGH, index=1),
        make_route("/shut/**", Access.DENIED, index=2),
        make_route("/report/{id}", Access.TOKEN, index=3, entity="things", enforce=False),
        make_route("/v1/{entity}", Access.TOKEN, index=4),
        make_route("/v1/{entity}/{id}", Access.TOKEN, index=5),
    ]


@asynccontextmanager
async def serving(handler: Handler, **facts: Any) -> AsyncIterator[tuple[Gateway, Backend]]:
    """A gateway in front of a backend that runs ``handler`` for each of its connections."""
    backend = Backend(handler)
    await backend.start()
    gateway = Gateway(backend.port, **facts)
    try:
        await gateway.start()
        yield gateway, backend
    finally:
        await gateway.close()
        await backend.close()


def get(target: str, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    """A request without a body."""
    return "\r\n".join((f"{method} {target} HTTP/{version}", "Host: gateway", *lines, "", "")).encode("latin-1")


def field_lines(head: bytes, name: str) -> list[bytes]:
    """Values of a field in a head, under any alias that a CGI or WSGI backend folds to the same name."""
    wanted = name.lower().encode()
    lines = [line.partition(b":") for line in head.split(b"\r\n")[1:-2]]
    return [v.strip(b" \t") for k, _, v in lines if k.lower().replace(b"_", b"-").replace(b".", b"-") == wanted]
