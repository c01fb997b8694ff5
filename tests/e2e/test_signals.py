"""A signal is handled at any moment of a gateway's life, and always has the same meaning."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.gateway import Patgate
from tests.support.operate import routes
from tests.support.process import Process, children, wait_until

CONFIG = {
    "workers": 1,
    "upstreams": {"app": {"servers": ["http://127.0.0.1:9"]}},
    "routes": routes({"path": "/**", "access": "public"}),
}
BLOCKING = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
os.execv(sys.argv[1], sys.argv[1:])
"""
ENDED = (0, -signal.SIGTERM)
"""The exit codes after draining, and after an end before there was anything to drain."""


def begun(node: Patgate) -> Process:
    """Start the gateway without waiting until it is ready; return its process."""
    node.launch()
    return node.process


def said(node: Patgate, event: str) -> bool:
    return any(record["event"] == event for record in node.records())


def heard(pid: int) -> set[int]:
    """The signals that a process has a handler for (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return {number for number in range(1, 65) if caught >> (number - 1) & 1}


MOMENTS = ("authority is ready", "link to the authority is up", "serving", "spare stands by", "answered")


# One handler serves both signals from before the first moment to after the last.
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        *((signal.SIGTERM, moment) for moment in MOMENTS),
        *((signal.SIGINT, moment) for moment in (MOMENTS[0], MOMENTS[-1])),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else value,
)
def test_a_stop_is_logged_and_ends_everything_at_each_moment_that_is_announced(
    number: signal.Signals, moment: str, tmp_path: Path
) -> None:
    node = Patgate(tmp_path, CONFIG)
    process = begun(node)
    try:
        wait_until(lambda: node.is_ready() if moment == "answered" else said(node, moment), moment, process=process)
        process.signal(number)
        assert process.wait() == 0
        events = [record["event"] for record in node.records() if record["process"] == "supervisor"]
        assert events[-2:] == ["stopping", "stopped"]
        assert not (node.data / "addresses.json").exists()
    finally:
        node.stop()


@pytest.mark.parametrize("seed", range(6))
def test_a_stop_at_a_random_moment_of_the_start_ends_everything(seed: int, tmp_path: Path) -> None:
    node = Patgate(tmp_path, CONFIG)
    process = begun(node)
    try:
        moment = time.monotonic() + random.Random(seed).uniform(0.0, 2.0)
        wait_until(lambda: time.monotonic() >= moment, "the moment")
        process.signal(signal.SIGTERM)
        assert process.wait() in ENDED
        if process.exit_code == 0:
            assert said(node, "stopping") and said(node, "stopped")
        else:
            assert not node.records(), "it had begun, and did not drain"
    finally:
        node.stop()


def test_signals_that_the_parent_had_blocked_are_heard(tmp_path: Path) -> None:
    with Patgate(tmp_path, CONFIG, prefix=[sys.executable, "-c", BLOCKING]) as node:
        node.process.signal(signal.SIGHUP)
        wait_until(lambda: said(node, "reloaded"), "the reload", process=node.process)
        node.process.signal(signal.SIGTERM)
        assert node.process.wait() == 0


def test_signals_are_heard_before_the_configuration_is_read(tmp_path: Path) -> None:
    """The first process of a container has no default action: a signal without a handler is dropped."""
    node = Patgate(tmp_path, CONFIG)
    node.config_file.unlink()
    os.mkfifo(node.config_file)
    process = begun(node)
    try:
        wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        wait_until(lambda: wanted <= heard(process.pid), "the handlers", process=process)
        process.signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
    finally:
        node.stop()


def test_a_reload_that_is_asked_for_during_the_start_follows_it(tmp_path: Path) -> None:
    node = Patgate(tmp_path, CONFIG)
    whole = tmp_path / "whole.yaml"
    shutil.move(node.config_file, whole)
    os.mkfifo(node.config_file)
    process = begun(node)
    try:
        wait_until(lambda: signal.SIGHUP in heard(process.pid), "the handler", process=process)
        process.signal(signal.SIGHUP)
        text = whole.read_text()
        with node.config_file.open("w") as fifo:  # opens when the gateway opens it for reading
            whole.replace(node.config_file)
            fifo.write(text)
        node.wait_ready()
        wait_until(lambda: said(node, "reloaded"), "the reload", process=process)
    finally:
        node.stop()


def test_a_stop_does_not_wait_for_a_configuration_that_nobody_can_read(tmp_path: Path) -> None:
    with Patgate(tmp_path, CONFIG) as node:
        node.config_file.unlink()
        os.mkfifo(node.config_file)
        node.process.signal(signal.SIGHUP)
        wait_until(lambda: said(node, "reloading"), "the reload begun", process=node.process)
        node.process.signal(signal.SIGTERM)
        assert node.process.wait() == 0
        assert said(node, "stopped")


def test_a_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    with Patgate(tmp_path, {**CONFIG, "timeouts": {"grace": "600s"}}) as node:
        node.process.signal(signal.SIGINT)
        wait_until(lambda: said(node, "stopping"), "the stop begun", process=node.process)
        pids = children(node.process.pid)
        node.process.signal(signal.SIGTERM)
        assert node.process.wait() == 0
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
