"""Gateways that test files share one after the other, because a start takes seconds and a reload milliseconds.

Rules:

1. A file that borrows a gateway has it alone until it returns it. It may make only changes that do not affect the next
   borrower: it adds users, tokens and requests, and leaves every process alive. A test that kills, freezes or restarts
   processes or damages files starts a gateway of its own.
2. A borrower gets its own configuration, by a reload, and a gateway without users. The log begins with its own lines.
   Errors in the log are checked for each borrower.
3. Organisations with their keys, roles that were set by the API, the audit log, the counters, the throttle of failed
   authentications and the operator's idempotency keys stay. A test uses unique names to find
   its own organisations and events, and compares counters with their earlier values.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from proxy.supervisor.reload import FIXED
from tests.support import errors
from tests.support.gateway import Patgate, complete
from tests.support.process import wait_until

_OPTIONAL = ("forward_auth", "ext_authz")
"""Listeners that a gateway has only if its configuration names them."""


class Pool:
    """The shared gateways of one pytest process; ``end`` ends them. ``directory`` makes a new directory for each."""

    def __init__(self, directory: Callable[[], Path]) -> None:
        self._directory = directory
        self._idle: list[Patgate] = []
        self._lent: dict[Patgate, None] = {}
        self._damaged: dict[Patgate, None] = {}

    @contextmanager
    def lend(self, config: Mapping[str, Any]) -> Iterator[Patgate]:
        """Lend a running gateway with this configuration and no user."""
        node = self._take(config)
        self._lent[node] = None
        try:
            yield node
            errors.close(node.directory / "patgate.log")
            if node not in self._damaged:
                _remove_users(node)
                self._idle.append(node)
        finally:
            del self._lent[node]
            self._damaged.pop(node, None)
            if node not in self._idle:
                node.stop()  # its state is unknown

    def damaged(self) -> None:
        """A test has failed: no gateway that is lent now goes back to the others, since its state is unknown.

        pytest does not throw a test's failure into the fixture that has borrowed the gateway.
        """
        self._damaged.update(self._lent)

    def end(self) -> None:
        """Stop every gateway that is not lent."""
        while self._idle:
            self._idle.pop().stop()

    def _take(self, config: Mapping[str, Any]) -> Patgate:
        """Reload and return an idle gateway, preferably one with the same number of workers; else a new one."""
        assert not {*FIXED} & config.keys(), "settings that only a start can change need a gateway of their own"
        if not self._idle:
            node = Patgate(self._directory(), config)
            node.start()
            return node
        workers = complete(config, Path())["workers"]
        best = max(self._idle, key=lambda node: node.config["workers"] == workers)
        self._idle.remove(best)
        try:
            _hand_over(best, config)
        except BaseException:
            # Timeouts of pytest too: the error is raised again, and no process may outlive the run.
            best.stop()
            raise
        return best


def _hand_over(node: Patgate, config: Mapping[str, Any]) -> None:
    """Reload a running gateway with another configuration, on its existing ports."""
    wanted = copy.deepcopy(dict(config))
    listen = wanted.setdefault("listen", {})
    for name, listener in node.config["listen"].items():
        if name not in _OPTIONAL or name in listen:
            listen.setdefault(name, {}).setdefault("bind", listener["bind"])
    wanted["data_dir"] = node.config["data_dir"]
    former = len(node.all_workers())
    node.begin(wanted)
    before, changed = _reloads(node), _changes(node)
    node.process.signal(signal.SIGHUP)
    wait_until(lambda: _reloads(node) > before, "the configuration of the next test file", process=node.process)
    wait_until(node.is_ready, "ready with the configuration of the next test file", process=node.process)
    node.all_workers()
    # A worker writes this line after all lines of the former borrower.
    wait_until(lambda: _changes(node) >= changed + former, "the end of the former log", process=node.process)
    node.forget_log()


def _reloads(node: Patgate) -> float:
    """How many reloads have succeeded; fails if one was refused."""
    events = [record["event"] for record in node.records()]
    assert not any(str(event).startswith("reload refused") for event in events), node.process.tail()
    return events.count("reloaded")


def _changes(node: Patgate) -> int:
    """How many times workers have logged that they have another configuration."""
    lines = [record for record in node.records() if record["event"] == "configuration changed"]
    return sum(record["process"].startswith("gateway") for record in lines)


def _remove_users(node: Patgate) -> None:
    with node.control_socket() as control:
        while users := control.call("GET", "/users?limit=100")["items"]:
            for user in users:
                control.call("DELETE", f"/users/{user['id']}")
