"""Log files in operation: a file that is appended to and rotated while the gateway runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.support.gateway import Patgate
from tests.support.process import wait_until
from tests.support.recorder import Recorder


def test_a_log_that_is_copied_and_truncated_goes_on_at_its_beginning(tmp_path: Path, recorder: Recorder) -> None:
    """After logrotate's copytruncate no line is lost or torn, and none is written after a hole."""
    config = {
        "workers": 2,
        "upstreams": {"app": {"servers": [recorder.url]}},
        "routes": [{"path": "/public/**", "upstream": "app", "access": "public"}],
        "log": {"access": "all"},
    }
    log, rotated = tmp_path / "patgate.log", tmp_path / "patgate.log.1"
    with Patgate(tmp_path, config) as node:

        def ask(target: str) -> None:
            for connection in node.connection_to_each_worker().values():
                with connection:
                    assert connection.request("GET", target).status == 200
            wait_until(lambda: log.read_text().count(target) == 2, "a line of each worker")

        ask("/public/before")
        shutil.copy(log, rotated)
        log.write_bytes(b"")
        ask("/public/after")
    for file, target in ((rotated, "/public/before"), (log, "/public/after")):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        asked = [line for line in lines if line.get("event") == "request"]
        assert [line["path"] for line in asked] == [target] * 2
        assert {line["process"] for line in asked} == {"gateway-0", "gateway-1"}
