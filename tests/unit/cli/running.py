"""Runs commands in a test directory with a configuration and a store."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tests.support.command import command

ROOT = Path(__file__).resolve().parents[3]

CONFIGURATION = """\
brand: acme
data_dir: ./data
workers: 1
listen:
  proxy: { bind: "127.0.0.1:0" }
  control: { bind: "127.0.0.1:0" }
upstreams:
  app: { servers: ["http://127.0.0.1:1"] }
roles:
  admin: ["*:*"]
  editor: ["things:*", "channels:read"]
  viewer: ["things:read", "things:list"]
routes:
  - { path: "/billing/**", upstream: app, access: denied }
  - { path: "/v1/{entity}", upstream: app }
  - { path: "/v1/{entity}/{id}", upstream: app }
argon2: { memory: 64KiB, iterations: 1 }
"""


def environment() -> dict[str, str]:
    """The environment of this process without patgate's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PATGATE_")}
    return kept | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "80"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Desk:
    """A directory with a configuration, in which commands run."""

    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "patgate.yaml"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def patgate(self, *arguments: str, configured: bool = True) -> CompletedProcess[str]:
        """Run one command with this configuration in this process, which is faster; any exit status is accepted."""
        named = {"PATGATE_CONFIG": str(self.config)} if configured else {}
        return command(*arguments, environ={"NO_COLOR": "1"} | named)

    def process(self, *arguments: str) -> CompletedProcess[str]:
        """Run one command as a process, as operators do."""
        return subprocess.run(
            [sys.executable, "-m", "proxy", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=self.directory,
            env=environment() | {"PATGATE_CONFIG": str(self.config)},
        )

    def document(self, *arguments: str) -> Any:
        """The one JSON document that a successful command prints."""
        done = self.patgate(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def lines(self, *arguments: str) -> list[str]:
        """The lines that a successful command prints for people."""
        done = self.patgate(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def refused(self, *arguments: str) -> str:
        """The one sentence of a command that is refused with exit status 1."""
        return only_sentence(self.patgate(*arguments))


def only_sentence(done: CompletedProcess[str]) -> str:
    """The one sentence that a refused command prints to standard error."""
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert sentence.endswith(".")
    return sentence
