"""The metric definitions are consistent and documented."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.observe.metrics import BY_NAME, METRICS, MetricKind

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"


def _documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    rows = re.findall(r"^\| `(patgate_\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_every_metric_is_documented_with_its_kind_and_labels_and_nothing_else_is() -> None:
    assert _documented() == {metric.name: (str(metric.kind), metric.labels) for metric in METRICS}


def test_names_are_unique_and_follow_the_prometheus_conventions() -> None:
    assert len(BY_NAME) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("patgate_")
        assert metric.name.endswith("_total") is (metric.kind is MetricKind.COUNTER)
        assert bool(metric.buckets) is (metric.kind is MetricKind.HISTOGRAM)
        assert list(metric.buckets) == sorted(set(metric.buckets))
