"""Targets in bulk: nginx, Apache, a WSGI router and Node run exactly the authorised operation, or see no request."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.differential.campaign import ROUND, Campaign
from tests.differential.targets import corpus, mutations, targets

SEED = 3
CORPUS_STRIDE = 4
TARGETS = 20_000
AREAS = ("public", "open", "loose", "collection", "item", "lenient", "other")


def bulk(part: int) -> list[bytes]:
    """Every fourth trick, then mutations, split into parts; ``make soak`` has every trick and a million mutations."""
    found = list(itertools.islice(itertools.chain(corpus()[::CORPUS_STRIDE], mutations(SEED)), TARGETS))
    return found[part :: TARGETS // ROUND]


@pytest.mark.parametrize("part", range(TARGETS // ROUND))
def test_a_server_believes_the_operation_that_was_authorised_or_sees_nothing(running: Campaign, part: int) -> None:
    """The targets are varied: each server got requests for each operation often enough to be meaningful."""
    before = running.counts.copy()
    findings = running.run(bulk(part))
    assert not findings, running.report(findings)
    counts = running.counts - before
    for server in running.servers:
        seen = {area: counts[server.name, area] for area in AREAS}
        assert min(seen.values()) >= ROUND // 200, f"{server.name}: {seen}"
        assert sum(seen.values()) >= ROUND // 4, f"{server.name}: {seen}"


# Without the explain phase, which repeats a failure many times: the report is minimal already.
@given(st.lists(targets, min_size=1, max_size=30))
@settings(
    max_examples=80,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_hypothesis_finds_no_target_that_is_read_in_two_ways(running: Campaign, batch: list[bytes]) -> None:
    findings = running.run(batch)
    assert not findings, running.report(findings, limit=1)
