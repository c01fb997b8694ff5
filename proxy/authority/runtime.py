"""Authority runtime: opens store, page, link and lease in order, and reports readiness and metrics.

Rules of this module:
1. Start order: key, store, page (an older store is refused before anything is written to it), roles of the
   configuration, link, lease. Nothing is served from a cache before the page has the store's epoch. A stop is the
   reverse.
2. Every commit after the page is open raises the page's epoch, also those of the start.
3. Without workers (``linked=False``, a command that works on the store by itself) there is no link and no lease. The
   page is still kept, as the high-water mark of what this host has acknowledged.
4. A store of several nodes is judged before anything is written to it (``consistency.membership``). While it is
   refused, this node is fenced: it starts, so that an operator can accept the store, but has no lease and makes no
   changes. The roles of the configuration are then applied after the acceptance.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from proxy import __version__
from proxy.authority.audit_head import AuditHeadLogger
from proxy.authority.consistency.membership import Membership
from proxy.authority.consistency.opening import embedded_node, node_row, open_membership, open_store
from proxy.authority.grants.argon2_hasher import Argon2Hasher, build_hasher
from proxy.authority.grants.lease import LeaseHolder, LeaseKeeper
from proxy.authority.grants.page_writer import PageWriter, open_page
from proxy.authority.grants.resolver import GrantResolver
from proxy.authority.grants.store_adapter import StoreGrants
from proxy.authority.housekeeping import Housekeeping
from proxy.authority.node_watch import NodeWatch
from proxy.authority.webhook import Endpoint
from proxy.authority.workers.broadcast import Broadcast
from proxy.authority.workers.metrics_aggregator import Counters
from proxy.authority.workers.recorder import BATCH, SHARED_EVENTS, RequestRecorder
from proxy.authority.workers.server import LinkServer
from proxy.core.errors import AuthorityError, ConfigurationError, Conflict, StoreError, StoreUnavailable
from proxy.core.ipc.clock import boottime_ns
from proxy.core.model import Actor, ActorKind, Grant, RefusedGrant
from proxy.core.reasons import Reason
from proxy.observe import defects, metrics
from proxy.observe.logs import get_logger
from proxy.observe.metrics import HashOutcome
from proxy.observe.snapshot import Snapshot, merge
from proxy.services import derived_secrets
from proxy.services.audit.reads import AuditReads
from proxy.services.factory import Services, build_services
from proxy.services.nodes import NodeView
from proxy.settings.compile import token_format
from proxy.settings.model import Settings
from proxy.settings.sources.secret import decode_webhook_secret, load_or_create
from proxy.store.address import sqlite_path, store_url
from proxy.store.audit.chain import Event
from proxy.store.audit.request_events import RequestEvent
from proxy.store.store import Store

CONFIGURATION: Final = Actor(kind=ActorKind.SYSTEM, id="configuration", name="configuration")
"""The actor of role changes that come from the configuration."""
OLDER_STORE: Final = "account.store.accept_older"
"""The action of the audit event for an accepted older store; its details have the numbers of the changes."""
STORE_SECONDS: Final = 2.0
"""How long the store may take to answer before it counts as unreachable."""
SETTLE_SECONDS: Final = 1.0
READY_LAG: Final = 64
"""Number of unapplied changes up to which a worker counts as up to date."""

_log = get_logger("authority")


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayStatus:
    """State of the gateway that the supervisor reports. ``workers`` is the expected number; 0: as in the settings."""

    starting: bool = False
    """Whether the supervisor is still starting: until then a stop waits for no load balancer."""
    draining: bool = False
    workers: int = 0
    reload_ok: bool = True
    """Whether the last reload succeeded, or there was none."""
    reload_time: float = 0.0
    """When a reload last succeeded, in unix seconds; 0 if never."""


class Authority:
    """Owns the store inside the ``async with`` block. Entering raises PatgateError and leaves nothing open.

    ``services`` exists inside the block only.
    """

    services: Services

    def __init__(
        self, settings: Settings, *, accept_older_store: bool = False, linked: bool = True, successor: bool = False
    ) -> None:
        self._settings = settings
        self._accept_older_store = accept_older_store
        self._linked = linked
        self._successor = successor
        self._stack = AsyncExitStack()
        self.counters = Counters()
        self.housekeeping = Housekeeping(self)
        self._ended = asyncio.Event()
        self._leasing: asyncio.Task[None] | None = None
        self._status = GatewayStatus()
        self._retired: list[Argon2Hasher] = []
        self._cache_key = b""
        self._resolver: GrantResolver
        self._store: Store
        self._hasher: Argon2Hasher
        self._page: PageWriter
        self._recorder: RequestRecorder
        self._reads = AuditReads(self)
        self._audit_log: AuditHeadLogger
        self._link: LinkServer
        self._lease: LeaseHolder
        self._membership: Membership | None = None
        self._watch = NodeWatch(self.nodes, self._superseded, offset=self._clock_offset)
        self._started_at = time.time()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def epoch(self) -> int:
        """The number of the last change announced on this host."""
        return self._page.epoch

    @property
    def brand(self) -> str:
        """The realm in challenges."""
        return self._settings.brand

    async def verify(self, token: str, *, prove: bool) -> Grant | RefusedGrant | None:
        """What a token presented to the control plane may do now; see ``control.runtime.ControlRuntime``.

        A fenced node believes no token: in the store that it refuses, a revoked one may be valid again.
        """
        if self._membership is not None and self._membership.fenced:
            raise StoreUnavailable(f"this node is fenced and accepts no token: {self._membership.fenced}")
        prefix = self.prefix_of(token)
        if not prefix:
            return RefusedGrant(prefix="", reason=Reason.TOKEN_UNKNOWN, depends=())
        found = await (self._resolver.verify(prefix, token) if prove else self._resolver.recognise(prefix, token))
        if found is None:
            return None
        if isinstance(found.outcome, RefusedGrant):
            # A refusal reveals a change, which must be in force on every node by then.
            await self._store.known(found.as_of, boottime_ns())
        return found.outcome

    def prefix_of(self, token: str) -> str:
        """The public prefix of a well-formed token; "" for any other text."""
        parsed = token_format(self._settings).parse(token)
        return "" if parsed is None else parsed.prefix

    def refused(self, reason: str) -> None:
        """Count a refused request of the control API."""
        self.counters.count(metrics.API_REFUSALS, reason)

    @property
    def records_refusals(self) -> bool:
        """Whether refused requests leave events in the audit log."""
        return self._settings.audit.requests != "off"

    def record(self, event: RequestEvent) -> None:
        """Queue an audit event of the control plane for the recorder."""
        self._recorder.record(event)

    def omit(self, count: int) -> None:
        """Record in the audit log that ``count`` events were left out."""
        self._recorder.omit(count)

    async def lost(self) -> None:
        """Return when the data directory is no longer ours; the process must end then.

        Raises AuthorityError if it must end because a task has failed that no lease may be held without.
        """
        await self._ended.wait()
        if self._leasing is not None and self._leasing.exception() is not None:
            raise AuthorityError("a task of the authority has failed, and is reported above: it has to start again")

    async def follow(self, settings: Settings) -> None:
        """Apply new settings; the roles of the configuration are written as any other change.

        Raises PatgateError, and then nothing has changed. Settings that only a restart can change are ignored.
        """
        await self._lease.allow_lease(settings.lease)
        await self._apply_roles(settings)
        before, self._settings = self._settings, settings
        if settings.argon2 != before.argon2:
            self._retired.append(self._hasher)
            self._hasher = build_hasher(settings.argon2, self._count_hash)
            self._resolver.verifier = self._hasher
        self.services = self._build_services()
        if self._membership is not None:
            self._membership.describe(node_row(settings, self._started_at))
        self._lease.last(settings.lease)

    @property
    def endpoint(self) -> Endpoint | None:
        """The webhook for expiry notices, if one is configured."""
        chosen = self._settings.notices
        key = None if chosen.secret is None else decode_webhook_secret(chosen.secret.get_secret_value())
        return None if chosen.webhook is None or key is None else Endpoint(url=chosen.webhook, key=key)

    async def prune(self) -> None:
        """Remove expired rows from the store. Raises StoreUnavailable."""
        await self._store.prune(time.time())

    async def claim(self, names: Sequence[str], node: str, seconds: float) -> frozenset[str]:
        """Claim periodic tasks for a node (``Store.claim``). Raises StoreUnavailable."""
        return await self._store.claim(names, node, seconds)

    async def give_up(self, names: Sequence[str], node: str) -> None:
        """End the claims of a node on periodic tasks. Raises StoreUnavailable."""
        await self._store.give_up(names, node)

    @property
    def audit_retention(self) -> float | None:
        """How many seconds audit events are kept; None for ever."""
        return self._settings.audit.retention

    async def watch_audit_head(self) -> None:
        """Log a new head of the audit log, and a new problem at its end."""
        await self._audit_log.check()

    async def nodes(self) -> list[NodeView]:
        """The nodes of the store: of an embedded one, this node alone. Raises StoreUnavailable."""
        if self._membership is not None:
            return await self._membership.nodes()
        row = node_row(self._settings, self._started_at)
        return [embedded_node(row, self._page, self._lease.remaining())]

    async def accept_history(self, actor: Actor) -> None:
        """Accept a store that this node refuses (``consistency.judgement``), as an audited change by ``actor``.

        Raises Conflict if it does not refuse the store, and StoreError.
        """
        if self._membership is None:
            raise Conflict("the store is embedded: patgate serve --accept-older-store accepts an older one")
        await self._membership.accept(actor)

    def show(self, status: GatewayStatus) -> None:
        """Report this status of the gateway in readiness and metrics from now on."""
        self._status = status

    def metrics(self) -> Snapshot:
        """All counters of this host, and the current gauges."""
        status = self._status
        gauges: dict[str, dict[tuple[str, ...], float]] = {
            metrics.EPOCH.name: {(): self._page.epoch},
            metrics.ARGON2_PENDING.name: {(): self._hasher.pending},
            metrics.WORKERS.name: {(): len(self._link.workers())},
            metrics.LEASE_SECONDS.name: {(): self._lease.remaining()},
            metrics.STORE_IN_DOUBT.name: {(): int(bool(self._store.in_doubt))},
            metrics.RELOAD_OK.name: {(): int(status.reload_ok)},
            metrics.RELOAD_TIME.name: {(): status.reload_time},
            metrics.TOKENS_EXPIRING.name: {(str(days),): n for days, n in self.housekeeping.expiring.items()},
            metrics.AUDIT_LAST.name: {(): self._store.audit_head.n},
            metrics.AUDIT_WHOLE.name: {(): int(self._audit_log.problem is None)},
            metrics.BUILD_INFO.name: {(__version__, platform.python_version()): 1},
        }
        fenced = self._membership is not None and bool(self._membership.fenced)
        watched = self._watch.snapshot(fenced=fenced)
        return merge((self.counters.total(), defects.snapshot(), Snapshot(gauges=gauges), watched))

    async def unready(self) -> Mapping[str, str]:
        """Why the gateway is not ready: a sentence for each failed check; empty when it is."""
        reasons: dict[str, str] = {}
        if self._status.starting:
            reasons["starting"] = "the gateway is still starting"
        if self._status.draining:
            reasons["draining"] = "the gateway is about to end"
        try:
            async with asyncio.timeout(STORE_SECONDS):
                await self._store.epoch()
        except StoreUnavailable as error:
            reasons["store"] = str(error)
        except TimeoutError:
            reasons["store"] = "the store does not answer in time"
        reasons |= self._lease.unready()
        if self._lease.remaining() == 0:
            reasons["lease"] = "the lease has run out"
        workers = self._link.workers()
        linked = len({worker.key.worker for worker in workers})
        wanted = self._status.workers or self._settings.workers
        if linked < wanted:
            reasons["workers"] = f"{linked} of {wanted} gateway workers are linked to the authority"
        elif all(worker.lag > READY_LAG for worker in workers):
            reasons["workers"] = "no gateway worker has applied the latest changes"
        return reasons

    async def _open(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        url = store_url(settings.store_address(), settings.data_dir)
        secret = settings.secret_key_bytes() or _own_key(settings, url)
        self._cache_key = cache_key = derived_secrets.cache_key(secret)
        self._hasher = build_hasher(settings.argon2, self._count_hash)
        stack.callback(self._close_hashers)
        self._store = await open_store(settings, url, secret)
        stack.push_async_callback(self._store.close)
        epoch = await self._store.epoch()
        self._page = open_page(
            settings.data_dir,
            store_epoch=None if self._store.shared else epoch,
            accept_older=self._accept_older_store,
            successor=self._successor,
        )
        stack.callback(self._page.close)
        broadcast = Broadcast(self._page, counted=lambda changes: self.counters.count(metrics.CHANGES, by=changes))
        if self._store.shared:
            self._membership = await open_membership(
                stack,
                settings,
                node_row(settings, self._started_at),
                store=self._store,
                page=self._page,
                broadcast=broadcast,
                owned=self._owned,
                timed=self._watch.acknowledged,
            )
            self._lease = self._membership
        else:
            self._store.on_commit = broadcast.on_commit
            self._store.on_doubt = self._page.doubt
            self._lease = LeaseKeeper(self._page, settings.lease, owned=self._owned)
        if self._page.in_doubt and not self._store.shared:
            # The former authority announced a change in doubt. Now it is known whether it is stored; if it is not, its
            # number must not be used again.
            await self._store.skip_to(self._page.epoch)
            self._page.doubt(0)
        self._recorder = RequestRecorder(
            self._store, self.counters, events_at_once=SHARED_EVENTS if self._store.shared else BATCH
        )
        self.services = self._build_services()
        await self._apply_configuration(stack)
        member = self._membership
        source = StoreGrants(self._store, self._now, *(() if member is None else (member.saw,)))
        self._resolver = GrantResolver(source, self._hasher, tokens=token_format(settings), cache_key=cache_key)
        self._link = LinkServer(
            settings.data_dir,
            resolver=self._resolver,
            feed=source,
            broadcast=broadcast,
            counters=self.counters,
            cache_key=cache_key,
            recorder=self._recorder,
        )
        self._store.when_lost(self._lease.look)
        self._audit_log = AuditHeadLogger(self._store)
        if self._linked:
            if not (member and member.fenced):
                await self._audit_log.check()
            # At the end of a stop, when the recorder has written its queue.
            stack.callback(self._audit_log.log_head)
        self._recorder.start()
        stack.push_async_callback(self._recorder.close)
        if self._page.overtaken:
            self._recorder.record(self._older_store(epoch))
        if self._linked:
            # The first query of a process is slow: run one, for a prefix that no token has, before the workers link.
            if not (member and member.fenced):
                await source.resolve((settings.brand,))
            await self._admit_workers(stack)

    async def _apply_configuration(self, stack: AsyncExitStack) -> None:
        """Apply the roles of the configuration now, or once the store is accepted (rule 4)."""
        if self._membership is None or not self._membership.fenced:
            await self._lease.allow_lease(self._settings.lease)
            await self._apply_roles(self._settings)
            return
        applying = asyncio.create_task(self._apply_later(self._membership), name="apply the configuration")
        applying.add_done_callback(defects.noted)

        async def end() -> None:
            applying.cancel()
            await asyncio.gather(applying, return_exceptions=True)

        stack.push_async_callback(end)

    async def _apply_roles(self, settings: Settings) -> None:
        roles = self.services.roles
        if self._store.shared:
            self._watch.superseded((await roles.sync_newest(CONFIGURATION, settings.roles)).superseded)
        else:
            await roles.sync_config(CONFIGURATION, settings.roles)

    async def _superseded(self) -> bool:
        if self._membership is not None and self._membership.fenced:
            return False
        return await self.services.roles.superseded(self._settings.roles)

    async def _apply_later(self, membership: Membership) -> None:
        await membership.until_followed()
        while True:
            try:
                await membership.allow_lease(self._settings.lease)
                await self._apply_roles(self._settings)
                return
            except StoreError as error:
                _log.warning("the roles of the configuration cannot be applied yet", error=error)
                await asyncio.sleep(SETTLE_SECONDS)

    def _now(self) -> float:
        """The time by which tokens expire, unix seconds: not before the database's own clock says so, either."""
        return time.time() + max(0.0, self._clock_offset())

    def _clock_offset(self) -> float:
        return 0.0 if self._membership is None else self._membership.clock_offset

    def _older_store(self, epoch: int) -> RequestEvent:
        """The audit event for an older store, such as a backup, that the operator has accepted at this change."""
        details = {"seen": self._page.overtaken, "accepted": epoch}
        event = Event(action=OLDER_STORE, target_kind="store", target_id=self._store.store_id, details=details)
        actor = (CONFIGURATION.kind.value, CONFIGURATION.id, CONFIGURATION.name)
        return RequestEvent(event=event, prefix="", proven=False, at=time.time(), actor=actor)

    async def _admit_workers(self, stack: AsyncExitStack) -> None:
        stack.push_async_callback(self._link.close)
        await self._link.start()
        await self._lease.start()
        self._leasing = lease = asyncio.create_task(self._lease.run(), name="lease")
        lease.add_done_callback(defects.noted)
        lease.add_done_callback(lambda _: self._ended.set())
        settling = asyncio.create_task(self._keep_settled(), name="settle the store")
        settling.add_done_callback(defects.noted)
        tasks = [lease, settling]
        if self._store.shared:
            watching = asyncio.create_task(self._watch.run(), name="watch the nodes")
            watching.add_done_callback(defects.noted)
            tasks.append(watching)

        async def end_lease() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        stack.push_async_callback(end_lease)

    def _owned(self) -> bool:
        return self._page.is_in_place() and self._store.is_in_place()

    async def _keep_settled(self) -> None:
        """End a doubt about a change as soon as the disk permits: tokens that it touched are refused meanwhile."""
        while True:
            await asyncio.sleep(SETTLE_SECONDS)
            doubtful = bool(self._store.in_doubt)
            try:
                await self._store.settle()
            except StoreError as error:
                if doubtful:
                    _log.error("the outcome of a change is unknown, and what it touched is refused", error=error)
            except Exception:  # noqa: BLE001 - a defect must not leave a doubt for ever
                _log.exception("the store's log could not be settled")
            else:
                if doubtful and not self._store.in_doubt:
                    _log.warning("the outcome of every change is known again")

    def _count_hash(self, outcome: HashOutcome) -> None:
        self.counters.count(metrics.ARGON2, outcome.value)

    def _close_hashers(self) -> None:
        for hasher in (*self._retired, self._hasher):
            hasher.close()

    def _build_services(self) -> Services:
        return build_services(
            self._store,
            self._settings,
            clock=self._now,
            hasher=self._hasher,
            cache_key=self._cache_key,
            reads=self._reads,
            nodes=self,
        )


def _own_key(settings: Settings, url: str) -> bytes:
    """The key in the data directory, of an embedded store."""
    if not url.startswith("sqlite"):
        raise ConfigurationError("secret_key must be set, the same on every node: store is shared by several nodes")
    return load_or_create(settings.data_dir, sqlite_path(url))
