"""The simulation of the protocol, compared with what follows from its rules by arithmetic, and with measured fleets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.scaling import measurements
from bench.scaling.page import fleet_outcome
from bench.scaling.protocol import RENEWALS, TRIPS, Deployment, simulate
from tests.unit.bench.scaling.kit import free

#: Fixed service times, so that sums are exact; changes rarely meet.
EXACT = Deployment(nodes=1, changes_per_second=0.5, network=0.0, sync=0.0, variability=0.0)


def test_without_costs_a_change_takes_no_longer_than_one_interval_of_the_poll() -> None:
    outcome = simulate(free(), EXACT, seconds=200)
    assert outcome.changes > 50
    assert outcome.acknowledged_p99 == pytest.approx(2.0)
    assert outcome.commit_p99 == 0
    assert outcome.utilisation == 0
    assert outcome.lapsed == 0


def test_an_idle_deployment_takes_the_sum_of_its_steps() -> None:
    """Signal, wake, read the head, acknowledge: 4 messages of half a round trip and the costs; then the next look."""
    costs = free(
        notify_sender=100.0, notify_receiver=200.0, head_client=300.0, head_server=400.0,
        acknowledgement_client=500.0, acknowledgement_server=600.0,
    )  # fmt: skip
    network, poll = 0.001, 0.000_01
    deployment = replace(EXACT, network=network, poll=poll, cores=8)
    outcome = simulate(costs, deployment, seconds=200)
    # The receiver is woken when the sender begins to signal; COMMIT returns a signal and half a round trip later.
    steps = (200 + 300 + 400 + 500 + 600) * 1e-6 + network / 2 + 2 * network
    waited = steps - 100e-6 - network / 2
    assert outcome.acknowledged_p50 is not None
    # The look that sees it begins at most an interval and a round trip later, and ends half a round trip after that.
    assert waited * 1e3 <= outcome.acknowledged_p50 <= (waited + 2 * network + poll) * 1e3


def test_a_change_holds_the_lock_for_its_round_trips_its_work_and_a_sync() -> None:
    costs = free(change_client=1100.0, change_server=2200.0)
    outcome = simulate(costs, replace(EXACT, network=0.001, sync=0.002), seconds=200)
    # Half a round trip after the sync COMMIT has returned.
    expected = (1100 + 2200) * 1e-6 + TRIPS * 0.001 + 0.002 + 0.0005
    assert outcome.commit_p50 == pytest.approx(expected * 1e3, rel=1e-6)


def test_changes_that_come_together_are_made_one_after_the_other() -> None:
    costs = free(change_server=10_000.0)
    busy = simulate(costs, replace(EXACT, changes_per_second=80.0, cores=8), seconds=50)
    assert busy.commit_p50 is not None
    # An M/D/1 queue with a load of 0.8: 10 ms of service, 20 ms of waiting on average.
    assert 15 < busy.commit_p50 < 35
    over = simulate(costs, replace(EXACT, changes_per_second=120.0, cores=8), seconds=20)
    assert over.unfinished > 300
    assert not over.steady


def test_renewals_cost_what_their_number_times_their_cost_is() -> None:
    costs = free(renewal_server=400.0)
    deployment = replace(EXACT, nodes=500, changes_per_second=0.0, lease=2.0, cores=4)
    outcome = simulate(costs, deployment, seconds=20)
    assert outcome.utilisation == pytest.approx(500 * RENEWALS / 2.0 * 400e-6 / 4, rel=0.02)
    assert outcome.lapsed == 0
    assert outcome.steady


def test_a_database_that_cannot_keep_up_with_renewals_lets_leases_run_out() -> None:
    costs = free(renewal_server=12_000.0)
    outcome = simulate(costs, replace(EXACT, nodes=500, changes_per_second=0.0, cores=2), seconds=10)
    assert outcome.utilisation == pytest.approx(1.0, abs=0.01)
    assert outcome.lapsed > 0.05
    assert not outcome.steady
    # A renewal takes a second: few leases run out yet, but nodes give their connections up.
    slow = simulate(
        free(renewal_server=4_200.0), replace(EXACT, nodes=500, changes_per_second=0.0, cores=2), seconds=10
    )
    assert slow.lapsed < outcome.lapsed / 5
    assert slow.late > 0.1
    assert not slow.steady


def test_renewals_that_wait_together_share_a_sync() -> None:
    deployment = replace(EXACT, nodes=1000, changes_per_second=0.0, sync=0.01)
    outcome = simulate(free(), deployment, seconds=10)
    # 2,500 renewals a second; the disk syncs all the time, and once for about 25 of them.
    assert outcome.syncs_per_second == pytest.approx(100, rel=0.02)
    assert outcome.renewal_p99 <= 20.001
    assert outcome.lapsed == 0


@pytest.mark.parametrize("nodes", [50, 400])
def test_acknowledgements_share_the_cores_of_the_database(nodes: int) -> None:
    """With many nodes the wait is their work, divided by the cores."""
    costs = free(head_server=200.0, acknowledgement_server=300.0)
    deployment = replace(EXACT, nodes=nodes, cores=4, poll=0.000_01, lease=1000.0)
    outcome = simulate(costs, deployment, seconds=100)
    assert outcome.acknowledged_p50 == pytest.approx(nodes * 500e-6 / 4 * 1e3, rel=0.02, abs=0.2)


def test_polling_more_rarely_makes_a_change_wait_for_the_next_look() -> None:
    costs = free(notify_receiver=10_000.0)
    often = simulate(costs, replace(EXACT, poll=0.001), seconds=100)
    rarely = simulate(costs, replace(EXACT, poll=0.5), seconds=100)
    assert often.acknowledged_p50 == pytest.approx(10, abs=1.1)
    assert rarely.acknowledged_p50 == pytest.approx(500, rel=0.01)


def test_equal_seeds_give_equal_outcomes_and_others_do_not() -> None:
    deployment = Deployment(nodes=5, changes_per_second=20.0)
    costs = free(change_server=1000.0, head_server=50.0, renewal_server=100.0)
    first, again, other = (simulate(costs, deployment, seconds=3, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_simulation_of_the_measured_fleets_is_near_to_what_was_measured() -> None:
    """Within a factor: the simulated machine is idle, and the measured one was shared."""
    costs = measurements.load()
    assert {fleet.nodes for fleet in costs.fleets} >= {3, 10, 30}
    for fleet in costs.fleets:
        simulated = fleet_outcome(costs, fleet.nodes, fleet.changes_per_second)
        assert simulated.acknowledged_p50 is not None
        assert 0.5 < fleet.acknowledged_p50 / simulated.acknowledged_p50 < 5, fleet
