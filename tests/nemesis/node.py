"""A node for a run under faults: with a network of its own, two workers, and sockets that clients reach anyway.

Only what goes to PostgreSQL uses the network: clients and operators use unix sockets, which belong to no network
namespace. So a node can be cut off from its store and still be asked, which is the dangerous case.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.support import errors
from tests.support.gateway import ROOT, ControlClient, Patgate
from tests.support.process import HANGS_SECONDS, Process, alive, children, command_line, wait_until
from tests.support.rawhttp import ConnectionEnded
from tests.support.stores import migrated

KEY: Final = "0f" * 32
ROLES: Final = {"editor": ["things:*"], "viewer": ["things:read", "things:list"]}
READY_SECONDS: Final = 240.0
"""How long a node may take to start on a machine where everything else has priority."""
ANSWER_SECONDS: Final = 10.0

#: What a node may log at level error while its processes are killed and its store is away.
EXPECTED: Final = (
    "child ended",
    "child did not start",
    "events and usage of requests cannot be written yet",
    "this node is fenced: it refuses requests and changes",
)
OF_MUTANTS: Final = ("the audit log is not whole", "traceback")
"""What one with a seeded bug may log, too."""


class Node(Patgate):
    """A node that clients reach at unix sockets. ``tree`` is the checkout that it runs: another one for a mutant."""

    def __init__(
        self,
        number: int,
        directory: Path,
        *,
        store: Mapping[str, Any],
        prefix: Sequence[str] = (),
        tree: Path = ROOT,
        python: Path | None = None,
    ) -> None:
        self.number = number
        self.tree = tree
        self.interpreter = python or Path(sys.executable)
        self.paused: set[int] = set()
        self.wanted = False
        """Whether it should be running: one that has ended by itself is then started again, as systemd does."""
        self.restarts = 0
        self.socket = directory / "auth.sock"
        (directory / "data").mkdir(parents=True, mode=0o700)
        config = {
            "secret_key": KEY,
            "listen": {"forward_auth": {"bind": f"unix:{self.socket}"}},
            "upstreams": {"app": {"servers": ["http://127.0.0.1:9"]}},
            "roles": ROLES,
            "routes": [{"path": "/v1/{entity}/{id}", "upstream": "app"}],
            "data_dir": str(directory / "data"),
            "log": {"access": "off"},
            # One node records requests too, so that batches of events and changes of others meet at the chain's head.
            "audit": {"requests": "off" if number else "refused"},
            **store,
        }
        super().__init__(directory, config, prefix=prefix)
        self.environ["PYTHONPATH"] = str(tree)
        if "store" not in store:
            migrated(self.data)

    def launch(self) -> None:
        self.wanted = True
        self._process = Process(
            [*self.prefix, str(self.interpreter), "-m", "proxy", "serve", "--config", str(self.config_file)],
            name="patgate",
            directory=self.directory,
            environ=self.environ,
            cwd=self.tree,
        )
        errors.expect(self.directory / "patgate.log", *EXPECTED, *(() if self.tree == ROOT else OF_MUTANTS))

    def is_ready(self) -> bool:
        try:
            with ControlClient(self.data / "control.sock", seconds=ANSWER_SECONDS) as control:
                return control.ready()
        except (OSError, ConnectionEnded):
            return False

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        wait_until(self.is_ready, f"node {self.number} ready", seconds=seconds, process=self.process)

    # --- what a nemesis does to it ---

    def pids(self) -> list[int]:
        """Every process of the node, the supervisor first."""
        return [self.process.pid, *children(self.process.pid)]

    def of_role(self, role: str) -> list[int]:
        return [pid for pid in children(self.process.pid) if role in command_line(pid)]

    def pause(self, pids: Sequence[int]) -> None:
        """Stop processes without their noticing (SIGSTOP), the supervisor first, until ``resume``."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self.paused.add(pid)

    def resume(self) -> None:
        for pid in self.paused:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.paused.clear()

    def kill_one(self, role: str) -> bool:
        """Kill one process of this role with SIGKILL; whether there was one."""
        pids = self.of_role(role)
        if pids:
            with suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGKILL)
        return bool(pids)

    def kill_all(self) -> None:
        """Kill every process at once, as a power failure does, and wait until they are gone."""
        self.wanted = False
        pids = self.pids()
        self.process.kill_session()
        wait_until(lambda: not any(alive(pid) for pid in pids), "the end of every process", seconds=HANGS_SECONDS)
        self.paused.clear()

    def ended(self) -> bool:
        """Whether it has ended although it should run."""
        return self.wanted and self.process.exit_code is not None

    def stop(self) -> None:
        self.resume()
        self.wanted = False
        super().stop()
