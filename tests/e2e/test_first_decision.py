"""A node that reports it is ready has done the work that would otherwise delay the first decision."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.gateway import Patgate, Token
from tests.support.rawhttp import bearer
from tests.support.recorder import Recorder

STARTS = 3
"""Starts to try: other load disturbs some figures, but a real defect shows in every start."""


def seconds_used(pids: Sequence[int]) -> float:
    """CPU seconds of these processes since they began (proc(5), schedstat), without time that other processes used."""
    total = 0
    for task in [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]:
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def decided(node: Patgate, token: Token) -> float:
    """CPU seconds of authority and worker for one decision about a token that is in no cache."""
    pids = [node.authority_pid(), *node.worker_pids()]
    before = seconds_used(pids)
    with node.connect() as connection:
        assert connection.request("GET", "/v1/things/1", headers=bearer(token.value)).status == 200
    return seconds_used(pids) - before


def test_the_first_decision_after_ready_costs_about_what_the_next_one_does(tmp_path: Path, backend: Recorder) -> None:
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"editor": ["things:*"]},
        "routes": [{"path": "/v1/{entity}/{id}", "upstream": "app"}],
    }
    node = Patgate(tmp_path, config)
    with node:
        user = node.add_user("ann@example.org", "editor")
        first, second = node.token(user, name="first"), node.token(user, name="second")
    found = []
    for _ in range(STARTS):
        with node:
            found.append((decided(node, first), decided(node, second)))
        if found[-1][0] < 2 * found[-1][1]:
            return
    raise AssertionError(f"CPU seconds of the first decision and of the next: {found}")
