"""What the authority does by itself, now and then: end unused tokens, tell of those that end or break the policy, tidy.

Rules of this module:
1. One chore after another, each a few short transactions at a time: nobody's change waits long for them. Notices are
   sent beside them, since a receiver may take its time: a log that outgrows its retention must not wait for it.
2. A chore that fails is logged and has its next turn like the others; none ends the housekeeping.
3. They are done where a gateway runs, by its authority, and never by a command that works on the store by itself.
4. Notices go where the settings of now say; what another receiver did not take is no reason to wait. At most
   ``RETRIES`` wait to be sent again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from proxy.authority.webhook import Courier, Endpoint, Failed, courier
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
NOTICES_AT_ONCE: Final = 200
NOTICES_TOGETHER: Final = 4
RETRIES: Final = 2000
TOKENS_AT_ONCE: Final = 20_000
"""Tokens that one turn looks at for being unused; a million of them take 50 turns."""
_FIRST_PAUSE_SECONDS: Final = 60.0
_LONGEST_PAUSE_SECONDS: Final = 3600.0
_GIVE_UP: Final = 3
"""Failures in a row after which a turn tries no other notice: the receiver is down, not the notice wrong."""

_log = get_logger("authority.housekeeping")


class HouseholdServices(Protocol):
    """The services that the chores use."""

    @property
    def policies(self) -> PolicyService: ...

    @property
    def notices(self) -> ExpiryNotices: ...

    @property
    def audit(self) -> AuditService: ...


class Household(Protocol):
    """What is kept: the authority, whose services and settings may become others at a reload."""

    @property
    def services(self) -> HouseholdServices: ...

    @property
    def endpoint(self) -> Endpoint | None:
        """Where notices go, if anywhere."""
        ...

    @property
    def counters(self) -> Counters: ...

    @property
    def audit_retention(self) -> float | None:
        """For how many seconds audit events are kept; None for ever."""
        ...

    async def prune(self) -> None:
        """Remove what the store keeps for a while only."""
        ...

    async def watch_audit_head(self) -> None:
        """Log the newest audit event where there is a newer one, and what is wrong with the end of the log."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Chore:
    name: str
    every: float
    """Seconds from the end of one turn to the next."""
    work: Callable[[], Awaitable[None]]


@dataclass(kw_only=True, slots=True)
class _Counted:
    """How many tokens break this policy, of those up to the cursor ``after``."""

    policy: TokenPolicy
    done: bool
    count: int = 0
    after: str | None = None


class Housekeeping:
    """``run`` does every chore at once and then each in its time, until it is cancelled."""

    def __init__(self, household: Household, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.expiring: Mapping[int, int] = {}
        """How many living tokens end within so many days, when they were counted last."""
        self._household = household
        self._monotonic = monotonic
        self._unused_after: str | None = None
        self._counted: _Counted | None = None
        self._retries: dict[str, tuple[int, float]] = {}
        self._receiver: Endpoint | None = None
        self._taken: list[Notice] = []
        """Notices that were taken and are not marked yet."""
        self._letters: tuple[Chore, ...] = (Chore(name="notices", every=60.0, work=self.tell),)
        self._chores: tuple[Chore, ...] = (
            Chore(name="unused tokens", every=60.0, work=self.end_unused),
            Chore(name="policy", every=10.0, work=self.count_breaking),
            Chore(name="audit head", every=60.0, work=household.watch_audit_head),
            Chore(name="retention", every=3600.0, work=self.retain),
            Chore(name="pruning", every=600.0, work=household.prune),
        )

    async def run(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as rounds:
            rounds.create_task(self._round(self._letters), name="notices")
            rounds.create_task(self._round(self._chores), name="chores")

    async def _round(self, chores: Sequence[Chore]) -> None:
        due = dict.fromkeys(chores, 0.0)
        while True:
            for chore, at in due.items():
                if self._monotonic() >= at:
                    await self._do(chore)
                    due[chore] = self._monotonic() + chore.every
            await asyncio.sleep(TICK_SECONDS)

    async def end_unused(self) -> None:
        """End tokens that nobody has used for as long as the policy says: a part of them in each turn."""
        ended, self._unused_after = await self._household.services.policies.end_inactive(
            HOUSEKEEPING, self._unused_after, TOKENS_AT_ONCE
        )
        if ended:
            _log.info("unused tokens ended", count=ended)

    async def count_breaking(self) -> None:
        """Warn once of how many tokens break the deployment's policy, after a start and whenever it has changed.

        A part of the tokens is looked at in each turn.
        """
        policies = self._household.services.policies
        if self._counted is None or self._counted.policy != policies.deployment:
            self._counted = _Counted(policy=policies.deployment, done=policies.deployment == TokenPolicy())
        counted = self._counted
        if counted.done:
            return
        count, counted.after = await policies.count_breaking(counted.after, TOKENS_AT_ONCE)
        counted.count += count
        counted.done = counted.after is None
        if counted.done and counted.count:
            _log.warning("living tokens break the policy: see patgate policy check", count=counted.count)

    async def retain(self) -> None:
        """Remove audit events that are older than the log is to hold."""
        seconds = self._household.audit_retention
        if seconds is not None:
            removed = await self._household.services.audit.retain(HOUSEKEEPING, time.time() - seconds)
            if removed.events:
                _log.info("old audit events removed", count=removed.events)

    async def tell(self) -> None:
        """Count the tokens that end soon, and send the notices that are due."""
        notices, endpoint = self._household.services.notices, self._household.endpoint
        self.expiring = await notices.counts()
        if endpoint is None:
            return
        # What could not be marked is not sent again meanwhile.
        await self._mark(notices)
        if endpoint != self._receiver:
            self._receiver, self._retries = endpoint, {}
        now = self._monotonic()
        # Those that wait to be sent again do not keep others from being looked at.
        due = await notices.due(NOTICES_AT_ONCE + len(self._retries))
        known = {notice.id for notice in due}
        self._retries = {id_: retry for id_, retry in self._retries.items() if id_ in known}
        wanted = [notice for notice in due if self._retries.get(notice.id, (0, 0.0))[1] <= now]
        if wanted:
            await self._send(notices, endpoint, wanted)

    async def _send(self, notices: ExpiryNotices, endpoint: Endpoint, wanted: list[Notice]) -> None:
        async with courier(NOTICES_TOGETHER) as carrier:
            failures = 0
            for first in range(0, len(wanted), NOTICES_TOGETHER):
                if self._household.endpoint != endpoint:
                    return  # the settings have become others
                batch = wanted[first : first + NOTICES_TOGETHER]
                outcomes = await asyncio.gather(*(self._one(carrier, endpoint, notice) for notice in batch))
                taken = [notice for notice, failed in zip(batch, outcomes, strict=True) if failed is None]
                self._taken += taken
                await self._mark(notices)
                failures = 0 if taken else failures + len(batch)
                if failures >= _GIVE_UP and not all(failed is None or failed.rejected for failed in outcomes):
                    return

    async def _mark(self, notices: ExpiryNotices) -> None:
        if self._taken:
            await notices.given(self._taken)
            self._taken = []

    async def _one(self, carrier: Courier, endpoint: Endpoint, notice: Notice) -> Failed | None:
        counters = self._household.counters
        try:
            await carrier.deliver(endpoint, notice.id, "token.expiring", notice.as_dict())
        except Failed as failed:
            attempts = self._retries.get(notice.id, (0, 0.0))[0] + 1
            if attempts > 1 or len(self._retries) < RETRIES:
                pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(attempts - 1, 6), _LONGEST_PAUSE_SECONDS)
                self._retries[notice.id] = (attempts, self._monotonic() + pause)
            counters.count(metrics.NOTICES, "failed")
            _log.warning("the webhook did not take a notice", prefix=notice.token.prefix, why=str(failed))
            return failed
        self._retries.pop(notice.id, None)
        counters.count(metrics.NOTICES, "sent")
        return None

    async def _do(self, chore: Chore) -> None:
        try:
            await chore.work()
        except PatgateError as error:
            _log.warning("a chore could not be done", chore=chore.name, error=error)
        except Exception:  # noqa: BLE001 - one defect must not end all the others' work
            _log.exception("a chore failed", chore=chore.name)
