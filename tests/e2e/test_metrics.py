"""/metrics in the Prometheus text format, summed over the workers."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway import Patgate
from tests.support.operate import settle_counts
from tests.support.plugin import EDITOR, VIEWER
from tests.support.process import wait_until
from tests.support.recorder import Recorder

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(gateway: Patgate) -> Samples:
    response = gateway.control("GET", "/metrics")
    assert response.status == 200
    assert (response.get("Content-Type") or "").startswith("text/plain")
    samples: Samples = {}
    for family in text_string_to_metric_families(response.body.decode()):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    return samples


def total(samples: Samples, name: str, labels: Mapping[str, str] | None = None) -> float:
    """The sum over every series of the name that has these labels."""
    wanted = set((labels or {}).items())
    return sum(value for (found, series), value in samples.items() if found == name and wanted <= set(series))


def test_requests_are_counted_by_route_and_outcome_over_both_workers(gateway: Patgate, recorder: Recorder) -> None:
    editor, viewer = gateway.token(EDITOR, name="metrics"), gateway.token(VIEWER, name="metrics")
    settle_counts(gateway)
    before = scrape(gateway)
    for connection in gateway.connection_to_each_worker().values():
        with connection:
            for _ in range(20):
                assert connection.request("GET", "/v1/channels/7/messages", headers=editor.bearer).status == 200
            for _ in range(10):
                assert connection.request("GET", "/v1/channels/7/messages", headers=viewer.bearer).status == 403
    settle_counts(gateway)
    after = scrape(gateway)
    route = {"route": "/v1/channels/{id}/messages"}
    allowed = route | {"outcome": "allowed"}
    refused = route | {"outcome": "refused", "reason": "role_denies"}

    def grown(name: str, labels: Mapping[str, str]) -> float:
        return total(after, name, labels) - total(before, name, labels)

    assert grown("patgate_requests_total", allowed) == 40
    assert grown("patgate_requests_total", refused) == 20
    assert grown("patgate_request_seconds_count", route) == 60


def test_the_cache_the_epoch_and_the_workers_are_there(gateway: Patgate, recorder: Recorder) -> None:
    token = gateway.token(EDITOR, name="cached")
    settle_counts(gateway)
    before = scrape(gateway)
    with gateway.connect() as connection:
        for _ in range(5):
            assert connection.request("GET", "/v1/things/1", headers=token.bearer).status == 200
    settle_counts(gateway)
    samples = scrape(gateway)
    assert total(samples, "patgate_cache_hits_total") - total(before, "patgate_cache_hits_total") >= 4
    assert total(samples, "patgate_cache_entries") >= 1
    assert total(samples, "patgate_epoch") >= 1
    assert total(samples, "patgate_workers") == 2
    # A worker may have been between the change and its news when it reported.
    wait_until(lambda: total(scrape(gateway), "patgate_epoch_lag") == 0, "every worker up to date")


def test_no_series_names_a_token_or_a_target(gateway: Patgate, recorder: Recorder) -> None:
    """Labels come from the configuration only, so that a client cannot create series."""
    token = gateway.token(EDITOR, name="labels")
    with gateway.connect() as connection:
        connection.request("GET", "/v1/things/marker-in-target", headers=token.bearer)
        connection.request("BREW", "/no-such-route-marker", headers=token.bearer)
    settle_counts(gateway)
    page = gateway.control("GET", "/metrics").body.decode()
    assert "marker" not in page
    assert token.prefix not in page
    assert "BREW" not in page


def test_health_answers_on_the_control_listener(gateway: Patgate) -> None:
    for path in ("/livez", "/readyz", "/startupz"):
        assert gateway.control("GET", path).status == 200, path
