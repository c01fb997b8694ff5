"""A client of the control socket that times every request, as the command line sends them."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlencode

from bench.errors import BenchError
from bench.report.figures import percentile
from bench.system.cpu_time import cpu_ns

HEAD: Final = ("times", "median, ms", "p99, ms", "longest, ms", "CPU, ms")
_TIMEOUT: Final = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """Durations of some requests, and the authority's average CPU time for one of them, in milliseconds."""

    what: str
    times: tuple[float, ...]
    cpu: float | None = None

    @property
    def median(self) -> float:
        return percentile(self.times, 0.5)

    @property
    def p99(self) -> float:
        return percentile(self.times, 0.99)

    @property
    def cells(self) -> tuple[str, ...]:
        """The label, then the cells of ``HEAD``."""
        shown = (f"{value:.1f}" for value in (self.median, self.p99, max(self.times)))
        return (self.what, f"{len(self.times)}", *shown, "" if self.cpu is None else f"{self.cpu:.1f}")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(str(self._path))


class Control:
    """One kept-alive connection to the control socket. Errors of the connection are OSError."""

    def __init__(self, data_dir: Path, authority: int) -> None:
        self._connection = _Connection(data_dir / "control.sock")
        self._authority = authority

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, body: object = None, **query: object) -> Any:
        """The document in the response. Raises BenchError for a status of 400 or above."""
        document, _ = self.timed(method, path, body, **query)
        return document

    def timed(self, method: str, path: str, body: object = None, **query: object) -> tuple[Any, float]:
        """The document in the response, and the milliseconds until its last byte."""
        encoded = urlencode({name: value for name, value in query.items() if value is not None})
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        began = time.perf_counter()
        self._connection.request(method, f"/api/v1{path}?{encoded}" if encoded else f"/api/v1{path}", content, headers)
        answer = self._connection.getresponse()
        raw = answer.read()
        took = (time.perf_counter() - began) * 1e3
        if answer.status >= 400:
            raise BenchError(f"{method} {path} was answered with {answer.status}: {raw[:300].decode(errors='replace')}")
        return json.loads(raw) if raw else None, took

    def each(self, what: str, method: str, path: str, queries: Sequence[Mapping[str, object]]) -> Timed:
        """One request for each of ``queries``."""
        return self.metered(what, (partial(self.timed, method, path, **query) for query in queries))

    def metered(self, what: str, requests: Iterable[Callable[[], tuple[Any, float]]]) -> Timed:
        """The durations of these requests, and the authority's CPU time for them."""
        before = cpu_ns((self._authority,))
        times = tuple(ask()[1] for ask in requests)
        cpu = (cpu_ns((self._authority,)) - before) / 1e6 / max(1, len(times))
        return Timed(what=what, times=times, cpu=cpu)
