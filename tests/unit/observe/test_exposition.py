"""The parser of prometheus-client reads the same values from ``/metrics``."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from proxy.observe import metrics
from proxy.observe.exposition import CONTENT_TYPE, render
from proxy.observe.snapshot import Snapshot, Tally


def _samples(snapshot: Snapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(render(snapshot).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_the_content_type_is_the_text_format_0_0_4() -> None:
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_histograms_are_cumulative_and_end_with_the_count_of_all() -> None:
    counts = (1, 2, *(0 for _ in metrics.SECONDS[2:]), 4)
    read = _samples(Snapshot(histograms={"patgate_request_seconds": {("/a",): Tally(counts=counts, sum=9.5)}}))
    assert read[("patgate_request_seconds_bucket", (("le", "0.0005"), ("route", "/a")))] == 1
    assert read[("patgate_request_seconds_bucket", (("le", "0.001"), ("route", "/a")))] == 3
    assert read[("patgate_request_seconds_bucket", (("le", "10.0"), ("route", "/a")))] == 3
    assert read[("patgate_request_seconds_bucket", (("le", "+Inf"), ("route", "/a")))] == 7
    assert read[("patgate_request_seconds_count", (("route", "/a"),))] == 7
    assert read[("patgate_request_seconds_sum", (("route", "/a"),))] == 9.5


def test_label_values_with_quotes_backslashes_and_newlines_survive() -> None:
    nasty = 'a"b\\c\nd'
    read = _samples(Snapshot(counters={"patgate_requests_total": {(nasty, "refused", "no_route"): 2}}))
    key = ("patgate_requests_total", (("outcome", "refused"), ("reason", "no_route"), ("route", nasty)))
    assert read[key] == 2


def test_a_metric_without_labels_is_zero_before_its_first_report() -> None:
    read = _samples(Snapshot())
    assert read[("patgate_cache_hits_total", ())] == 0
    assert read[("patgate_workers", ())] == 0
