"""Watching the nodes of a shared store: their number, other configurations, and how long changes wait for them.

The values are for metrics and the log only; no decision uses them.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from proxy.core.errors import StoreError
from proxy.observe import metrics
from proxy.observe.logs import get_logger
from proxy.observe.snapshot import Labels, Snapshot, Tally
from proxy.services.nodes import NodeView

WATCH_SECONDS: Final = 5.0
OFFSET_SECONDS: Final = 2.0
"""From this offset on, the clocks of host and database are reported as wrong."""

_log = get_logger("authority.nodes")


class NodeWatch:
    """What this node last saw of all nodes. Until ``look`` was called, it is the only one."""

    def __init__(
        self,
        nodes: Callable[[], Awaitable[Sequence[NodeView]]],
        superseded: Callable[[], Awaitable[bool]],
        *,
        offset: Callable[[], float],
    ) -> None:
        """``nodes`` and ``superseded`` raise StoreError; ``offset`` is that of the database's clock, in seconds."""
        self._nodes = nodes
        self._read_superseded = superseded
        self._offset = offset
        self._count = 1
        self._others: tuple[str, ...] = ()
        self._superseded = False
        self._wrong_clock = False
        self._counts = [0] * (len(metrics.SECONDS) + 1)
        self._sum = 0.0

    def acknowledged(self, seconds: float) -> None:
        """Note that a change was in force everywhere ``seconds`` after its commit."""
        self._counts[bisect_left(metrics.SECONDS, seconds)] += 1
        self._sum += seconds

    def superseded(self, superseded: bool) -> None:
        """Note whether the roles of the configuration are superseded."""
        if superseded and not self._superseded:
            _log.warning(
                "the roles of the configuration are not applied: newer ones were applied after them; "
                "patgate role apply applies these"
            )
        self._superseded = superseded

    async def look(self) -> None:
        """Read the nodes, and log what an operator should know, once. Raises StoreError."""
        nodes = await self._nodes()
        others = tuple(sorted(f"{node.name} ({node.id[:8]})" for node in nodes if not node.config_matches))
        if others and others != self._others:
            _log.warning("nodes of this store have another configuration than this one", nodes=", ".join(others))
        elif self._others and not others:
            _log.info("all nodes of this store have the same configuration again")
        self._count, self._others = len(nodes), others
        wrong = abs(self._offset()) > OFFSET_SECONDS
        if wrong and not self._wrong_clock:
            _log.warning("the clocks of this host and of the database differ", seconds=round(self._offset(), 3))
        self._wrong_clock = wrong
        self.superseded(await self._read_superseded())

    async def run(self) -> None:
        """Look every ``WATCH_SECONDS`` until cancelled."""
        while True:
            try:
                await self.look()
            except StoreError as error:
                _log.debug("the nodes of the store cannot be read", error=error)
            await asyncio.sleep(WATCH_SECONDS)

    def snapshot(self, *, fenced: bool) -> Snapshot:
        """The metrics of this module."""
        gauges: dict[str, float] = {
            metrics.NODES.name: self._count,
            metrics.CONFIG_MISMATCH.name: len(self._others),
            metrics.STORE_FENCED.name: int(fenced),
            metrics.ROLES_SUPERSEDED.name: int(self._superseded),
            metrics.CLOCK_OFFSET.name: self._offset(),
        }
        waited: dict[Labels, Tally] = {(): Tally(counts=tuple(self._counts), sum=self._sum)}
        return Snapshot(
            gauges={name: {(): value} for name, value in gauges.items()},
            histograms={metrics.ACKNOWLEDGEMENT_SECONDS.name: waited},
        )
