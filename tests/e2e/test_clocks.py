"""The clocks of a node: leases are on one that counts a suspend, and expiry is judged by one that is not behind.

A time namespace (time_namespaces(7)) sets CLOCK_BOOTTIME or CLOCK_MONOTONIC ten days ahead, as after a suspend of ten
days.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from pathlib import Path

import pytest

from proxy.core.ipc.clock import boottime_ns
from proxy.core.ipc.shared_memory import PAGE_SIZE, PageView
from proxy.gateway.grants.page_reader import PageReader
from tests.support.backends import program
from tests.support.gateway import Patgate, Token, token_of
from tests.support.process import wait_until
from tests.support.recorder import Recorder

OWNER = "eve@example.org"
TARGET = "/v1/things/1"
AHEAD = 10 * 86_400
LEASE = 1.0


def lease_ends(node: Patgate) -> float:
    """The end of the node's lease in the shared page, in seconds."""
    page = PageReader(node.directory / "data" / "page")
    try:
        return page.view.lease_until_ns / 1e9
    finally:
        page.close()


@pytest.mark.parametrize(("clock", "ahead"), [("--boottime", AHEAD), ("--monotonic", 0)])
def test_authority_and_workers_have_their_lease_on_the_clock_that_counts_a_suspend(
    tmp_path: Path, recorder: Recorder, clock: str, ahead: int
) -> None:
    config = {
        "workers": 1,
        "lease": f"{LEASE}s",
        "upstreams": {"app": {"servers": [recorder.url]}},
        "roles": {"editor": ["things:*"]},
        "routes": [{"path": "/v1/{entity}/{id}", "upstream": "app"}],
    }
    alone = [program("unshare"), "--time", clock, str(AHEAD), *(["--map-root-user"] if os.geteuid() else [])]
    with Patgate(tmp_path, config, prefix=alone) as node:
        node.add_user(OWNER, "editor")
        token = node.token(OWNER)

        def status() -> int:
            with node.connect() as connection:
                return connection.request("GET", TARGET, headers=token.bearer).status

        # On a busy machine the authority may be late once.
        wait_until(lambda: status() == 200, "a decision from the cache")
        authority = node.authority_pid()
        os.kill(authority, signal.SIGSTOP)
        try:
            # It is frozen within the lease that it wrote last, or before its next.
            left = lease_ends(node) - boottime_ns() / 1e9
            assert ahead - 60 < left <= ahead + LEASE
            wait_until(lambda: status() == 503, "the end of the lease, which the worker sees on the same clock")
        finally:
            os.kill(authority, signal.SIGCONT)
        wait_until(lambda: status() == 200, "decisions again")


def test_workers_judge_expiry_by_the_clock_of_the_store_if_that_is_ahead(tmp_path: Path, recorder: Recorder) -> None:
    """The authority writes to the shared page how far it is ahead; here the test does."""
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [recorder.url]}},
        "roles": {"editor": ["things:*"]},
        "routes": [{"path": "/v1/{entity}/{id}", "upstream": "app"}],
    }
    with Patgate(tmp_path, config) as node:
        node.add_user(OWNER, "editor")
        lasting = node.token(OWNER, name="lasting")
        with node.control_socket() as control:
            brief = token_of(control.call("POST", "/tokens", {"user": OWNER, "name": "brief", "expires": 3600}))
        with (
            node.connect() as connection,
            (node.directory / "data" / "page").open("r+b") as file,
            mmap.mmap(file.fileno(), PAGE_SIZE) as mapped,
            memoryview(mapped) as view,
        ):
            page = PageView(view)

            def statuses(*tokens: Token) -> list[int]:
                return [connection.request("GET", TARGET, headers=token.bearer).status for token in tokens]

            wait_until(lambda: statuses(brief, lasting) == [200, 200], "both tokens in the cache")
            page.set_ahead(3600.0)
            wait_until(lambda: statuses(brief) == [401], "the expiry by the clock of the store")
            assert statuses(lasting) == [200]
            page.set_ahead(-3600.0)
            wait_until(lambda: statuses(brief, lasting) == [200, 200], "the host's own clock again")
            page.release()


def test_the_clock_is_boottime() -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert before <= boottime_ns() <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
