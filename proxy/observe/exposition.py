"""Rendering metrics in the Prometheus text format 0.0.4; the only module that imports prometheus-client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from proxy.observe.metrics import METRICS, Metric, MetricKind
from proxy.observe.snapshot import Labels, Snapshot, Tally

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def render(snapshot: Snapshot) -> bytes:
    """All metrics in the order of ``metrics.METRICS``; a metric without labels and without a value is 0."""
    return generate_latest(_Once(_families(snapshot)))


class _Once(Collector):
    """The registry interface of ``generate_latest`` for one list of families."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        """The families."""
        return self._families


def _families(snapshot: Snapshot) -> Iterable[Family]:
    for metric in METRICS:
        if metric.kind is MetricKind.COUNTER:
            counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in _or_zero(metric, snapshot.counters).items():
                counter.add_metric(labels, value)
            yield counter
        elif metric.kind is MetricKind.GAUGE:
            gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in _or_zero(metric, snapshot.gauges).items():
                gauge.add_metric(labels, value)
            yield gauge
        else:
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, tally in snapshot.histograms.get(metric.name, {}).items():
                histogram.add_metric(labels, buckets=_cumulative(metric, tally), sum_value=tally.sum)
            yield histogram


def _or_zero(metric: Metric, section: Mapping[str, Mapping[Labels, float]]) -> Mapping[Labels, float]:
    series = section.get(metric.name)
    if series:
        return series
    return {} if metric.labels else {(): 0}


def _cumulative(metric: Metric, tally: Tally) -> list[tuple[str, float]]:
    bounds = [*(str(bound) for bound in metric.buckets), "+Inf"]
    total = 0
    out: list[tuple[str, float]] = []
    for bound, count in zip(bounds, tally.counts, strict=True):
        total += count
        out.append((bound, total))
    return out
