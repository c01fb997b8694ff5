"""Housekeeping of the authority: ends unused tokens, sends expiry notices, counts policy violations, removes old rows.

Rules of this module:
1. Chores run one after another, each in a few short transactions, so that no other change waits long for them. Notices
   are sent in parallel to them, because a receiver may be slow and audit retention must not wait for it.
2. A chore that fails is logged and runs again at its next turn; no failure ends the housekeeping.
3. Chores run only in the authority of a gateway, never in a command that works on the store by itself.
4. Notices go to the currently configured webhook; failures of a former one do not delay them. At most ``RETRIES``
   notices wait for a retry.
5. Of several nodes with one store, the one that has the claim (``claim``) does what concerns the store; each does what
   concerns itself (``Chore.each_node``). The claim makes double work rare, not impossible: tokens that ended and rows
   that were removed stay so, and each notice is claimed by itself before it is sent.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from proxy.authority.claim import CLAIM_SECONDS, Claim
from proxy.authority.webhook import DeliveryFailed, Endpoint, WebhookClient, webhook_client
from proxy.core.errors import PatgateError
from proxy.core.model import Actor, ActorKind
from proxy.observe import metrics
from proxy.observe.logs import get_logger
from proxy.services.policy.model import TokenPolicy
from proxy.services.tokens.expiry_notices import ExpiryNotices, Notice

if TYPE_CHECKING:
    from proxy.authority.workers.metrics_aggregator import Counters
    from proxy.services.audit.service import AuditService
    from proxy.services.policy.service import PolicyService

HOUSEKEEPING: Final = Actor(kind=ActorKind.SYSTEM, id="housekeeping", name="housekeeping")
TICK_SECONDS: Final = 5.0
RENEWALS: Final = 4
"""How often the claim is renewed before it would end."""
NOTICES_AT_ONCE: Final = 200
NOTICES_TOGETHER: Final = 4
RETRIES: Final = 2000
TOKENS_AT_ONCE: Final = 20_000
"""Tokens that one turn checks for being unused; a million of them take 50 turns."""
_FIRST_PAUSE_SECONDS: Final = 60.0
_LONGEST_PAUSE_SECONDS: Final = 3600.0
_GIVE_UP: Final = 3
"""Failures in a row after which a turn sends no other notice: the receiver is down, not the notice wrong."""

_log = get_logger("authority.housekeeping")


class HousekeepingServices(Protocol):
    """The services that the chores use."""

    @property
    def policies(self) -> PolicyService:
        """The policy service."""
        ...

    @property
    def notices(self) -> ExpiryNotices:
        """The service that finds and marks expiry notices."""
        ...

    @property
    def audit(self) -> AuditService:
        """The audit service."""
        ...


class HousekeepingHost(Protocol):
    """The part of the authority that housekeeping uses; a reload may replace its services and settings."""

    @property
    def services(self) -> HousekeepingServices:
        """The services in use."""
        ...

    @property
    def endpoint(self) -> Endpoint | None:
        """The webhook for expiry notices, if one is configured."""
        ...

    @property
    def counters(self) -> Counters:
        """The counters of this host."""
        ...

    @property
    def audit_retention(self) -> float | None:
        """How many seconds audit events are kept; None for ever."""
        ...

    async def claim(self, names: Sequence[str], node: str, seconds: float) -> frozenset[str]:
        """Claim these tasks for ``node`` (``Store.claim``)."""
        ...

    async def give_up(self, names: Sequence[str], node: str) -> None:
        """End the claims of ``node`` on these tasks."""
        ...

    async def prune(self) -> None:
        """Remove expired rows from the store."""
        ...

    async def watch_audit_head(self) -> None:
        """Log a new head of the audit log, and a new problem at its end."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Chore:
    """A periodic task: ``work`` runs when ``every`` seconds have passed since the end of its last run."""

    name: str
    every: float
    """Seconds from the end of one turn to the next."""
    work: Callable[[], Awaitable[None]]
    each_node: bool = False
    """Whether it concerns the node itself, and so is done without the claim."""


@dataclass(kw_only=True, slots=True)
class _Counted:
    """Number of tokens up to the cursor ``after`` that break this policy."""

    policy: TokenPolicy
    done: bool
    count: int = 0
    after: str | None = None


class Housekeeping:
    """``run`` does every chore immediately and then at its interval, until it is cancelled."""

    def __init__(
        self, host: HousekeepingHost, *, node: str = "", monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.expiring: Mapping[int, int] = {}
        """Number of active tokens that expire within so many days, at the last count."""
        self._host = host
        self._node = node or secrets.token_hex(16)
        self._claim = Claim(host, "housekeeping", self._node)
        self._monotonic = monotonic
        self._unused_after: str | None = None
        self._counted: _Counted | None = None
        self._retries: dict[str, tuple[int, float]] = {}
        self._receiver: Endpoint | None = None
        self._delivered: list[Notice] = []
        """Notices that were delivered and are not yet marked as sent."""
        self._notice_chores: tuple[Chore, ...] = (
            Chore(name="expiring tokens", every=60.0, work=self.count_expiring, each_node=True),
            Chore(name="notices", every=60.0, work=self.send_notices),
        )
        self._chores: tuple[Chore, ...] = (
            Chore(name="unused tokens", every=60.0, work=self.end_unused),
            Chore(name="policy", every=10.0, work=self.count_breaking, each_node=True),
            Chore(name="audit head", every=60.0, work=host.watch_audit_head, each_node=True),
            Chore(name="retention", every=3600.0, work=self.retain),
            Chore(name="pruning", every=600.0, work=host.prune),
        )

    async def run(self) -> None:
        """Run all chores at their intervals; never returns."""
        await self._claim.renew()
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(self._keep_claim(), name="claim")
                loops.create_task(self._repeat(self._notice_chores), name="notices")
                loops.create_task(self._repeat(self._chores), name="chores")
        finally:
            await self._claim.give_up()

    async def _keep_claim(self) -> None:
        while True:
            await asyncio.sleep(CLAIM_SECONDS / RENEWALS)
            await self._claim.renew()

    async def _repeat(self, chores: Sequence[Chore]) -> None:
        due = dict.fromkeys(chores, 0.0)
        while True:
            for chore, at in due.items():
                if self._monotonic() >= at and (chore.each_node or self._claim.held):
                    await self._do(chore)
                    due[chore] = self._monotonic() + chore.every
            await asyncio.sleep(TICK_SECONDS)

    async def end_unused(self) -> None:
        """End tokens that were not used for as long as the policy allows, ``TOKENS_AT_ONCE`` of them in each turn."""
        ended, self._unused_after = await self._host.services.policies.end_inactive(
            HOUSEKEEPING, self._unused_after, TOKENS_AT_ONCE
        )
        if ended:
            _log.info("unused tokens ended", count=ended)

    async def count_breaking(self) -> None:
        """Log once how many tokens break the deployment's policy, after a start and after each change of the policy.

        Each turn checks ``TOKENS_AT_ONCE`` tokens.
        """
        policies = self._host.services.policies
        if self._counted is None or self._counted.policy != policies.deployment:
            self._counted = _Counted(policy=policies.deployment, done=policies.deployment == TokenPolicy())
        counted = self._counted
        if counted.done:
            return
        count, counted.after = await policies.count_breaking(counted.after, TOKENS_AT_ONCE)
        counted.count += count
        counted.done = counted.after is None
        if counted.done and counted.count:
            _log.warning("active tokens break the policy: see patgate policy check", count=counted.count)

    async def retain(self) -> None:
        """Remove audit events that are older than the retention."""
        seconds = self._host.audit_retention
        if seconds is not None:
            removed = await self._host.services.audit.retain(HOUSEKEEPING, time.time() - seconds)
            if removed.events:
                _log.info("old audit events removed", count=removed.events)

    async def count_expiring(self) -> None:
        """Count the tokens that expire soon."""
        self.expiring = await self._host.services.notices.counts()

    async def send_notices(self) -> None:
        """Send the notices that are due."""
        notices, endpoint = self._host.services.notices, self._host.endpoint
        if endpoint is None:
            return
        # Delivered notices that could not be marked as sent must not be sent twice.
        await self._mark(notices)
        if endpoint != self._receiver:
            self._receiver, self._retries = endpoint, {}
        now = self._monotonic()
        # More than those that wait for a retry, so that they do not hide others.
        due = await notices.due(NOTICES_AT_ONCE + len(self._retries))
        known = {notice.id for notice in due}
        self._retries = {id_: retry for id_, retry in self._retries.items() if id_ in known}
        wanted = [notice for notice in due if self._retries.get(notice.id, (0, 0.0))[1] <= now]
        if wanted:
            await self._send(notices, endpoint, wanted)

    async def _send(self, notices: ExpiryNotices, endpoint: Endpoint, wanted: list[Notice]) -> None:
        async with webhook_client(NOTICES_TOGETHER) as client:
            failures = 0
            for first in range(0, len(wanted), NOTICES_TOGETHER):
                if self._host.endpoint != endpoint:
                    return  # a reload has changed the webhook
                batch = await notices.claim(wanted[first : first + NOTICES_TOGETHER], self._node)
                outcomes = await asyncio.gather(*(self._deliver(client, endpoint, notice) for notice in batch))
                delivered = [notice for notice, failed in zip(batch, outcomes, strict=True) if failed is None]
                self._delivered += delivered
                await self._mark(notices)
                failures = 0 if delivered else failures + len(batch)
                if failures >= _GIVE_UP and not all(failed is None or failed.rejected for failed in outcomes):
                    return

    async def _mark(self, notices: ExpiryNotices) -> None:
        if self._delivered:
            await notices.given(self._delivered, self._node)
            self._delivered = []

    async def _deliver(self, client: WebhookClient, endpoint: Endpoint, notice: Notice) -> DeliveryFailed | None:
        counters = self._host.counters
        try:
            await client.deliver(endpoint, notice.id, "token.expiring", notice.as_dict())
        except DeliveryFailed as failed:
            attempts = self._retries.get(notice.id, (0, 0.0))[0] + 1
            if attempts > 1 or len(self._retries) < RETRIES:
                pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(attempts - 1, 6), _LONGEST_PAUSE_SECONDS)
                self._retries[notice.id] = (attempts, self._monotonic() + pause)
            counters.count(metrics.NOTICES, "failed")
            _log.warning("the webhook did not accept a notice", prefix=notice.token.prefix, why=str(failed))
            return failed
        self._retries.pop(notice.id, None)
        counters.count(metrics.NOTICES, "sent")
        return None

    async def _do(self, chore: Chore) -> None:
        try:
            await chore.work()
        except PatgateError as error:
            _log.warning("a periodic task could not be done", chore=chore.name, error=error)
        except Exception:  # noqa: BLE001 - a defect in one chore must not end the others
            _log.exception("a periodic task failed", chore=chore.name)
