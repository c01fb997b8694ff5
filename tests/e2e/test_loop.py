"""Gateways in front of each other: by mistake, which is reported as a loop, and on purpose, which is accepted."""

from __future__ import annotations

from pathlib import Path

from tests.support.gateway import Patgate
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, free_port
from tests.support.recorder import Recorder

ROUTES = [{"path": "/public/**", "upstream": "app", "access": "public"}]


def test_a_node_whose_backend_is_itself_answers_508_whichever_worker_it_is_sent_to(tmp_path: Path) -> None:
    port = free_port()
    config = {
        "workers": 2,
        "listen": {"proxy": {"bind": f"{LOOPBACK}:{port}"}},
        "upstreams": {"app": {"servers": [f"http://{LOOPBACK}:{port}"]}},
        "routes": ROUTES,
        "log": {"access": "all"},
    }
    with Patgate(tmp_path, config) as node:
        for connection in node.connection_to_each_worker().values():
            with connection:
                answer = connection.request("GET", "/public/a")
                assert (answer.status, answer.json()["reason"]) == (508, "loop_detected")
        node.stop()
        records = [record for record in node.records() if record.get("event") == "request"]
    assert sorted(record["reason"] for record in records) == ["allowed"] * 2 + ["loop_detected"] * 2


def test_two_nodes_in_a_row_are_no_loop_and_each_says_so(gateways: Pool, recorder: Recorder) -> None:
    def config(server: str) -> dict[str, object]:
        return {"workers": 1, "upstreams": {"app": {"servers": [server]}}, "routes": ROUTES}

    with (
        gateways.lend(config(recorder.url)) as inner,
        gateways.lend(config(inner.base_url)) as outer,
        outer.connect() as connection,
    ):
        assert connection.request("GET", "/public/a").status == 200
    first, second = (value.decode() for value in recorder.last().all("via"))
    assert first.startswith("1.1 patgate-") and second.startswith("1.1 patgate-")
    assert first != second
