"""A full disk, with a real store: changes are refused, tokens work, events and uses are queued and written once."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy.authority.workers import recorder as module
from proxy.authority.workers.metrics_aggregator import Counters
from proxy.authority.workers.recorder import RequestRecorder
from proxy.core.errors import StoreUnavailable
from proxy.core.model import Grant
from proxy.observe import metrics
from proxy.store.audit.queries import LogQuery, SortOrder
from tests.contract.kit import ADMIN, Kit, opened
from tests.unit.authority.waiting import until
from tests.unit.authority.workers.test_recorder import row


@contextmanager
def _no_file_grows_beyond(size: int) -> Iterator[None]:
    """RLIMIT_FSIZE: ``write`` fails with EFBIG (Python ignores SIGXFSZ), as it would with ENOSPC on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def decisions(kit: Kit) -> list[str]:
    async with kit.store.read() as rows:
        found = await rows.log.page(LogQuery(action="request."), SortOrder.RECORDED, None, 10_000)
    return [entry.decision_id for entry in found.entries if entry.decision_id]


async def test_events_queued_on_a_full_disk_are_bounded_and_written_once_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVENTS", 300)
    counters = Counters()
    async with opened(tmp_path) as kit:
        await kit.basics()
        token = await kit.mint("ann@example.org", "t")
        recorder = RequestRecorder(kit.store, counters, events_seconds=0.01, sums_seconds=0.01)
        recorder.start()
        # The file can be overwritten up to its current size; nothing more fits.
        with _no_file_grows_beyond((tmp_path / "patgate.db-wal").stat().st_size):
            for number in range(600):
                recorder.take({"op": "requests", "events": [row(f"d{number}")], "omitted": 1})
                recorder.take({"op": "uses", "uses": [[token.view.id, 1, 5.0 + number, "::1"]]})
            await until(lambda: recorder._failing)
            with pytest.raises(StoreUnavailable):
                await kit.users.add(ADMIN, "full@example.org", "viewer")
            assert isinstance(await kit.resolve(token.view.prefix), Grant)
            assert recorder.waiting <= 300 + 2
        await until(lambda: recorder.waiting == 0)
        await kit.users.add(ADMIN, "after@example.org", "viewer")
        await recorder.close()
        assert await decisions(kit) == [f"d{number}" for number in range(300)]
        assert counters.total().counters[metrics.AUDIT_LOST.name] == {("overflow",): 300}
        view = await kit.tokens.show(ADMIN, token.view.id)
        assert (view.use_count, view.last_used_at) == (600, 604.0)
        assert (await kit.store.verify_audit()).problem is None
