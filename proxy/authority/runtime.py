"""The authority, put together: what it opens, in which order, and what it shows of itself.

Rules of this module:
1. Order of a start: key, store, page (an older store is refused before anything is written to it), roles of the
   configuration, link, lease. Nothing is served from a cache before the page has the store's epoch. A stop is the
   reverse.
2. The page is told of every commit from the moment that it is open, those of the start included.
3. Without workers (``linked=False``, a command that works on the store by itself) there is no link and no lease; the
   page is kept all the same, as the high-water mark of what this host has acknowledged.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from proxy import __version__
from proxy.authority.audit_head import HeadWatch
from proxy.authority.grants.hashing import Argon2Hasher, HashParameters
from proxy.authority.grants.lease import LeaseKeeper
from proxy.authority.grants.resolver import GrantResolver
from proxy.authority.grants.shared_memory import PageWriter, open_page
from proxy.authority.grants.store_adapter import StoreGrants
from proxy.authority.housekeeping import Housekeeping
from proxy.authority.webhook import Endpoint
from proxy.authority.workers.broadcast import Broadcast
from proxy.authority.workers.metrics_aggregator import Counters
from proxy.authority.workers.recorder import RequestRecorder
from proxy.authority.workers.server import LinkServer
from proxy.core.errors import StoreError, StoreUnavailable
from proxy.core.model import Actor, ActorKind, Grant, RefusedGrant
from proxy.core.reasons import Reason
from proxy.observe import defects, metrics
from proxy.observe.logs import get_logger
from proxy.observe.snapshot import Snapshot, merge
from proxy.services import derived_secrets
from proxy.services.audit.reads import AuditReads
from proxy.services.factory import Services, build_services
from proxy.settings.compile import token_format
from proxy.settings.model import Settings
from proxy.settings.sources.secret import decode_webhook_secret, load_or_create
from proxy.store.address import sqlite_path, store_url
from proxy.store.audit.chain import Event
from proxy.store.audit.request_events import RequestEvent
from proxy.store.store import Store

CONFIGURATION: Final = Actor(kind=ActorKind.SYSTEM, id="configuration", name="configuration")
"""Who changes the roles when the configuration did."""
OLDER_STORE: Final = "account.store.accept_older"
"""The action of the event that says that the store is an older one, with the numbers of the changes."""
STORE_SECONDS: Final = 2.0
"""How long the store may take to answer before it counts as not reachable."""
SETTLE_SECONDS: Final = 1.0
READY_LAG: Final = 64
"""Changes that a worker may have yet to apply and still count as in step."""

_log = get_logger("authority")


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayStatus:
    """What the supervisor knows of the gateway and the authority shows. ``workers`` 0: as many as the settings say."""

    starting: bool = False
    """Whether the supervisor has yet to finish its start: until then a stop waits for no load balancer."""
    draining: bool = False
    workers: int = 0
    reload_ok: bool = True
    """Whether the configuration in use is that of the last reload, or none has been tried."""
    reload_time: float = 0.0
    """When the last reload succeeded, in unix seconds; 0 where none has."""


class Authority:
    """Owns the store while the block runs. Entering raises PatgateError with nothing left open.

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
        self._standing = GatewayStatus()
        self._retired: list[Argon2Hasher] = []
        self._cache_key = b""
        self._resolver: GrantResolver
        self._store: Store
        self._hasher: Argon2Hasher
        self._page: PageWriter
        self._recorder: RequestRecorder
        self._reads = AuditReads(self)
        self._audit_log: HeadWatch
        self._link: LinkServer
        self._lease: LeaseKeeper

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
        """The number of the last change that was announced on this host."""
        return self._page.epoch

    @property
    def brand(self) -> str:
        """What challenges name as the realm."""
        return self._settings.brand

    async def verify(self, token: str, *, prove: bool) -> Grant | RefusedGrant | None:
        """What a token presented to the control plane may do now; see ``control.runtime.ControlRuntime``."""
        prefix = self.prefix_of(token)
        if not prefix:
            return RefusedGrant(prefix="", reason=Reason.TOKEN_UNKNOWN, depends=())
        if prove:
            return (await self._resolver.verify(prefix, token)).outcome
        found = await self._resolver.recognise(prefix, token)
        return None if found is None else found.outcome

    def prefix_of(self, token: str) -> str:
        """The public prefix of what is a well-formed token; "" for anything else."""
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
        """Have an event of the control plane written with those of requests."""
        self._recorder.record(event)

    def omit(self, count: int) -> None:
        """Have it said in the audit log that so many events were left out."""
        self._recorder.omit(count)

    async def lost(self) -> None:
        """Return when the data directory is no longer ours; the process must end then."""
        await self._ended.wait()

    async def follow(self, settings: Settings) -> None:
        """Go on with these settings; the roles of the configuration are a change like any other.

        Raises PatgateError, and then nothing has changed. What only a new start can change is not looked at.
        """
        await self.services.roles.sync_config(CONFIGURATION, settings.roles)
        before, self._settings = self._settings, settings
        if settings.argon2 != before.argon2:
            self._retired.append(self._hasher)
            self._hasher = _hasher(settings, self.counters)
            self._resolver.verifier = self._hasher
        self.services = self._build_services()
        self._lease.last(settings.lease)

    @property
    def endpoint(self) -> Endpoint | None:
        """Where notices go, if anywhere."""
        chosen = self._settings.notices
        key = None if chosen.secret is None else decode_webhook_secret(chosen.secret.get_secret_value())
        return None if chosen.webhook is None or key is None else Endpoint(url=chosen.webhook, key=key)

    async def prune(self) -> None:
        """Remove what the store keeps for a while only. Raises StoreUnavailable."""
        await self._store.prune(time.time())

    @property
    def audit_retention(self) -> float | None:
        """For how many seconds audit events are kept; None for ever."""
        return self._settings.audit.retention

    async def watch_audit_head(self) -> None:
        """Log the newest audit event where there is a newer one, and what is wrong with the end of the log."""
        await self._audit_log.look()

    def show(self, standing: GatewayStatus) -> None:
        """Say this of the gateway, in readiness and metrics, from now on."""
        self._standing = standing

    def metrics(self) -> Snapshot:
        """Everything counted on this host, with the gauges of now."""
        standing = self._standing
        gauges: dict[str, dict[tuple[str, ...], float]] = {
            metrics.EPOCH.name: {(): self._page.epoch},
            metrics.ARGON2_PENDING.name: {(): self._hasher.pending},
            metrics.WORKERS.name: {(): len(self._link.workers())},
            metrics.LEASE_SECONDS.name: {(): self._lease.remaining()},
            metrics.STORE_IN_DOUBT.name: {(): int(bool(self._store.in_doubt))},
            metrics.RELOAD_OK.name: {(): int(standing.reload_ok)},
            metrics.RELOAD_TIME.name: {(): standing.reload_time},
            metrics.TOKENS_EXPIRING.name: {(str(days),): n for days, n in self.housekeeping.expiring.items()},
            metrics.AUDIT_LAST.name: {(): self._store.audit_head.n},
            metrics.AUDIT_WHOLE.name: {(): int(self._audit_log.problem is None)},
            metrics.BUILD_INFO.name: {(__version__, platform.python_version()): 1},
        }
        return merge((self.counters.total(), defects.snapshot(), Snapshot(gauges=gauges)))

    async def unready(self) -> Mapping[str, str]:
        """Why requests cannot be served now: a sentence for each failed check; empty when they can."""
        reasons: dict[str, str] = {}
        if self._standing.starting:
            reasons["starting"] = "the gateway is still starting"
        if self._standing.draining:
            reasons["draining"] = "the gateway is about to end"
        try:
            async with asyncio.timeout(STORE_SECONDS):
                await self._store.epoch()
        except StoreUnavailable as error:
            reasons["store"] = str(error)
        except TimeoutError:
            reasons["store"] = "the store does not answer in time"
        if self._lease.remaining() == 0:
            reasons["lease"] = "the lease has run out"
        workers = self._link.workers()
        linked = len({worker.key.worker for worker in workers})
        wanted = self._standing.workers or self._settings.workers
        if linked < wanted:
            reasons["workers"] = f"{linked} of {wanted} gateway workers are linked to the authority"
        elif all(worker.lag > READY_LAG for worker in workers):
            reasons["workers"] = "no gateway worker has applied the latest changes"
        return reasons

    async def _open(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        url = store_url(settings.store, settings.data_dir)
        secret = settings.secret_key_bytes() or load_or_create(settings.data_dir, sqlite_path(url))
        self._cache_key = cache_key = derived_secrets.cache_key(secret)
        self._hasher = _hasher(settings, self.counters)
        stack.callback(self._close_hashers)
        self._store = await Store.open(url, key_fingerprint=derived_secrets.fingerprint(secret))
        stack.push_async_callback(self._store.close)
        epoch = await self._store.epoch()
        self._page = open_page(
            settings.data_dir,
            store_epoch=epoch,
            accept_older=self._accept_older_store,
            successor=self._successor,
        )
        stack.callback(self._page.close)
        broadcast = Broadcast(self._page, counted=lambda changes: self.counters.count(metrics.CHANGES, by=changes))
        self._store.on_commit = broadcast.on_commit
        self._store.on_doubt = self._page.doubt
        if self._page.in_doubt:
            # A change was announced in doubt by who was here before. Whether it is stored is known now; if it is not,
            # its number is used up all the same.
            await self._store.skip_to(self._page.epoch)
            self._page.doubt(0)
        self._recorder = RequestRecorder(self._store, self.counters)
        self.services = self._build_services()
        await self.services.roles.sync_config(CONFIGURATION, settings.roles)
        source = StoreGrants(self._store, time.time)
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
        self._lease = LeaseKeeper(self._page, settings.lease, owned=self._owned)
        self._store.when_lost(self._lease.look)
        self._audit_log = HeadWatch(self._store)
        if self._linked:
            await self._audit_log.look()
            # The last word of a stop, when the recorder has written what waited.
            stack.callback(self._audit_log.say)
        self._recorder.start()
        stack.push_async_callback(self._recorder.close)
        if self._page.overtaken:
            self._recorder.record(self._older_store(epoch))
        if self._linked:
            # The first question of a process takes long; this is one that nobody asked, about a token that cannot be.
            await source.resolve((settings.brand,))
            await self._admit_workers(stack)

    def _older_store(self, epoch: int) -> RequestEvent:
        """The event of an older store, such as a backup, that the operator has accepted as of this change."""
        details = {"seen": self._page.overtaken, "accepted": epoch}
        event = Event(action=OLDER_STORE, target_kind="store", target_id=self._store.store_id, details=details)
        actor = (CONFIGURATION.kind.value, CONFIGURATION.id, CONFIGURATION.name)
        return RequestEvent(event=event, prefix="", proven=False, at=time.time(), actor=actor)

    async def _admit_workers(self, stack: AsyncExitStack) -> None:
        stack.push_async_callback(self._link.close)
        await self._link.start()
        self._lease.renew()
        lease = asyncio.create_task(self._keep_lease(), name="lease")
        lease.add_done_callback(defects.noted)
        settling = asyncio.create_task(self._keep_settled(), name="settle the store")
        settling.add_done_callback(defects.noted)

        async def end_lease() -> None:
            lease.cancel()
            settling.cancel()
            await asyncio.gather(lease, settling, return_exceptions=True)

        stack.push_async_callback(end_lease)

    async def _keep_lease(self) -> None:
        await self._lease.run()
        self._ended.set()

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

    def _close_hashers(self) -> None:
        for hasher in (*self._retired, self._hasher):
            hasher.close()

    def _build_services(self) -> Services:
        return build_services(
            self._store,
            self._settings,
            clock=time.time,
            hasher=self._hasher,
            cache_key=self._cache_key,
            reads=self._reads,
        )


def _hasher(settings: Settings, counters: Counters) -> Argon2Hasher:
    chosen = settings.argon2
    return Argon2Hasher(
        HashParameters(time_cost=chosen.iterations, memory_kib=chosen.memory // 1024, parallelism=chosen.parallelism),
        threads=chosen.threads,
        queue=chosen.queue,
        counted=lambda outcome: counters.count(metrics.ARGON2, outcome.value),
    )
