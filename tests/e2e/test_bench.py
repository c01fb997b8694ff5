"""The benchmarks that load one gateway, at a small size: each reports its figures, and the figures are valid.

``python -m bench`` runs them at full size. Figures that depend on time are not checked here, only those that hold at
any size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.gateway import ROOT, clean_environ

# In a new process: the load beside the gateway is forked off, and a process that forks should have no other threads.
MEASURE = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from bench.__main__ import SUBCOMMANDS
from bench.report.figures import Run
from bench.system.machine import divide_cores
name, directory, sizes = sys.argv[1:]
run = Run(directory=Path(directory), cores=divide_cores(), **json.loads(sizes))
print(json.dumps(asdict(SUBCOMMANDS[name].measure(run))))
"""
BREAK_OFF = """
import json, sys
from pathlib import Path
from bench.system.machine import divide_cores, until
from bench.scenarios.soak import soaked
from bench.testbed import received, warm_tokens
from bench.load.workload import mint
tokens = mint(8)
with soaked(Path(sys.argv[1]), divide_cores(), tokens) as (testbed, bad):
    base = testbed.descriptors()
    warm_tokens(testbed.port, "/v1/things/1", tokens)
    bad.send(300)
    made = received(bad, 120, "the aborting clients finished")
    if isinstance(made, Exception):
        raise made
    until(lambda: testbed.descriptors() <= base, "the worker gave back its descriptors", 60)
    print(json.dumps(made))
"""


def ran(script: str, *arguments: str) -> Any:
    environ = {name: value for name, value in clean_environ({}).items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def measured(name: str, directory: Path, **sizes: float) -> dict[str, float]:
    """The figures by what they measure, without the size at which they were measured."""
    part = ran(MEASURE, name, str(directory), json.dumps(sizes))
    return {figure["what"].partition(": ")[2]: figure["spread"]["median"] for figure in part["figures"]}


def test_a_large_body_each_way_is_carried_whole(tmp_path: Path) -> None:
    found = measured("bulk", tmp_path, entries=8 << 20, rounds=1)
    assert found["throughput, ratio to nginx unbuffered"] > 0
    assert found["growth of the worker's memory at its peak"] < 16


def test_random_tokens_push_no_valid_token_out(tmp_path: Path) -> None:
    found = measured("strangers", tmp_path, entries=1000, seconds=0.5, tokens=20)
    assert found["change of the valid tokens' hit rate"] == 0
    assert found["argon2 runs"] == 0


def test_every_way_of_breaking_off_is_gone_through_and_leaves_no_descriptor(tmp_path: Path) -> None:
    made = ran(BREAK_OFF, str(tmp_path))
    assert sum(made.values()) == 300
    assert len(made) > 20
