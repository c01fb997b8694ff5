"""What is multiplied: the work of a large fleet, by hand."""

from __future__ import annotations

import pytest

from bench.scaling import sizing
from bench.scaling.cold_cache import Group
from bench.scaling.sizing import Fleet
from tests.unit.bench.scaling.kit import free

COSTS = free(
    renewal_server=100.0, renewal_log=10.0, change_server=1000.0, change_client=500.0, disk_sync=500.0,
    notify_sender=10.0, notify_receiver=40.0, head_server=50.0, acknowledgement_server=50.0, fetch_server=200.0,
    grant_batch_server=100.0, use_server=50.0, event_server=60.0, event_wall=125.0, gateway_cpu=30.0,
    token_bytes=1000.0, usage_bytes=100.0, event_bytes=800.0,
)  # fmt: skip
#: A million tokens, all equally frequent.
EVEN = (Group(tokens=1e6, share=1e-6),)


def fleet(**changed: float | bool) -> Fleet:
    values = {"nodes": 100, "workers": 2, "requests": 1e6, "affinity": False, "changes": 10.0, **changed}
    return Fleet(groups=EVEN, **values)  # type: ignore[arg-type]


def rates(**changed: float | bool) -> dict[str, float]:
    return {part.what: part.per_second for part in sizing.parts(COSTS, fleet(**changed))}


def test_each_part_of_the_work_has_its_rate() -> None:
    found = rates()
    assert found["renewals of leases"] == 250
    assert rates(lease=10.0)["renewals of leases"] == 50
    assert found["changes"] == 10
    assert found["notifications"] == found["heads read and acknowledged"] == found["keys fetched"] == 1000
    assert found["events of requests"] == pytest.approx(50_000)


def test_the_cores_of_a_part_are_its_rate_times_its_cost() -> None:
    found = {part.what: part for part in sizing.parts(COSTS, fleet())}
    assert found["renewals of leases"].cores == pytest.approx(250 * 100e-6)
    assert found["renewals of leases"].log == pytest.approx(2500)
    assert found["notifications"].cores == pytest.approx(1000 * 50e-6)
    assert found["heads read and acknowledged"].cores == pytest.approx(1000 * 100e-6)
    assert found["events of requests"].cores == pytest.approx(50_000 * 60e-6)


def test_a_node_writes_a_row_for_each_different_token_of_five_seconds() -> None:
    # A node sees 50,000 requests in that time, nearly as many tokens; together 100 nodes write 100 rows a token.
    assert rates()["uses added"] == pytest.approx(100 * 1e6 * (1 - 2.718281828**-0.05) / 5, rel=1e-6)
    # With one node for each token, five uses of it are one row.
    assert rates(affinity=True)["uses added"] == pytest.approx(1e6 * (1 - 2.718281828**-5) / 5, rel=1e-6)


def test_grants_that_no_cache_has_are_resolved() -> None:
    # An LRU cache of a fifth of equally frequent tokens has a fifth of them.
    assert rates()["grants resolved"] == pytest.approx(800_000, rel=0.01)
    assert rates(affinity=True)["grants resolved"] == 0
    assert rates(entries=1_000_000)["grants resolved"] == 0


def test_ceilings_come_from_what_is_done_one_after_the_other() -> None:
    assert sizing.events_ceiling(COSTS) == pytest.approx(8000)
    assert sizing.changes_ceiling(COSTS, 0.0) == pytest.approx(500)
    assert sizing.changes_ceiling(COSTS, 0.001) == pytest.approx(1 / 0.013)


def test_cores_of_gateways_and_bytes_of_the_store() -> None:
    assert sizing.gateway_cores(COSTS, 1e6) == pytest.approx(30)
    assert sizing.stored_bytes(COSTS, 1e8, 1e9) == pytest.approx(1.1e11 + 8e11)
