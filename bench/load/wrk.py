"""wrk as closed-loop load generator: written in C, one thread, each request built by ``wrk.lua`` when it is sent."""

import http.client
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.load.workload import Workload
from bench.system.machine import Cores, pin, require

CONNECTIONS = 32
_SCRIPT = Path(__file__).with_name("wrk.lua")


@dataclass(frozen=True, kw_only=True, slots=True)
class Driven:
    """The result of one run of wrk; every request was answered with a status below 400."""

    requests: int
    seconds: float
    bytes_read: int
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def drive(
    port: int, workload: Workload, cores: Cores, *, seconds: float, seed: int, from_token: int | None = None
) -> Driven:
    """Send requests as fast as they are answered for ``seconds`` (whole seconds, at least one).

    Each request presents a token drawn at random, or, with ``from_token``, the next one in turn from that number on.
    Raises BenchError if an answer's status was 400 or above or a connection failed.
    """
    order = "random" if from_token is None else str(from_token)
    options = ["--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{max(1, round(seconds))}s"]
    options += ["--timeout", "10s", "--script", str(_SCRIPT)]
    arguments = [str(workload.tokens_file), str(workload.paths_file), str(seed), order]
    command = [require("wrk", "wrk"), *options, f"http://127.0.0.1:{port}/", "--", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        pin(process.pid, cores.rest)
        output, _ = process.communicate(timeout=seconds + 60)
    last = output.strip().rpartition("\n")[2]
    if process.returncode or not last.startswith("{"):
        raise BenchError(f"wrk ended with status {process.returncode}: {last}.")
    seen: dict[str, int] = json.loads(last)
    failures = {name: seen[name] for name in ("connect", "read", "write", "timeout", "status") if seen[name]}
    if failures or not seen["requests"]:
        raise BenchError(f"Of {seen['requests']} answers some were wrong or missing: {failures}.")
    return Driven(requests=seen["requests"], seconds=seen["duration_us"] / 1e6, bytes_read=seen["bytes"],
                  p50_ms=seen["p50_us"] / 1e3, p99_ms=seen["p99_us"] / 1e3)  # fmt: skip


def ask(port: int, path: str, token: str | None = None) -> tuple[int, bytes]:
    """One GET by the standard library: status and body. Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
