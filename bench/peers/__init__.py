"""The gateways that are compared.

A peer starts itself in front of a given backend and reports which processes to measure.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.load.workload import Workload
from bench.system.machine import Cores


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The files of a certificate and its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Where a peer runs: a directory it may write to, the backend's port on 127.0.0.1, the tokens, the cores."""

    directory: Path
    origin_port: int
    workload: Workload
    cores: Cores


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """A peer that accepts requests on 127.0.0.1:``port``."""

    port: int
    workers: tuple[int, ...]
    """The pids whose CPU time is the cost of a request."""
    beside: Mapping[str, int] = field(default_factory=dict)
    """Other processes of the peer, by name: reported separately."""
    workload: Workload | None = None
    """The workload to send if it is not that of the site: fewer keys."""
    tls: bool = False


class Peer(Protocol):
    """One gateway: checks the token of each request and proxies it with HTTP/1.1 kept alive on both sides."""

    @property
    def name(self) -> str:
        """A short name for the table."""

    @property
    def does(self) -> str:
        """One sentence on what it does with each request, for the notes below the table."""

    def serve(self, site: Site) -> AbstractContextManager[Serving]:
        """Run, with one worker pinned to ``site.cores.subject``, until the context ends. Raises BenchError."""
