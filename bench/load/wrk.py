"""wrk as closed-loop load generator: written in C, one thread, each request built by ``wrk.lua`` when it is sent."""

import http.client
import json
import ssl
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
    """The result of one run of a load generator; every request got an answer of the expected kind."""

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
    port: int,
    workload: Workload,
    cores: Cores,
    *,
    seconds: float,
    seed: int,
    from_token: int | None = None,
    tls: bool = False,
    close: bool = False,
    call: bool = False,
    refused: bool = False,
) -> Driven:
    """Send requests as fast as they are answered for ``seconds`` (whole seconds, at least one).

    Each request presents a token drawn at random, or, with ``from_token``, the next one in turn from that number on.
    With ``close`` each has a connection of its own (``Connection: close``); with ``tls`` these resume their sessions,
    because wrk keeps the session of the connection before. With ``call`` it sends what nginx asks about each request,
    to a forward-auth listener. Raises BenchError if an answer's status was 400 or above
    (with ``refused``: below 400) or a connection failed.
    """
    order = "random" if from_token is None else str(from_token)
    options = ["--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{max(1, round(seconds))}s"]
    options += ["--timeout", "10s", "--script", str(_SCRIPT)]
    arguments = [str(workload.tokens_file), str(workload.paths_file), str(seed), order]
    arguments.append("close" if close else "call" if call else "keep")
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/"
    command = [require("wrk", "wrk"), *options, url, "--", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        pin(process.pid, cores.rest)
        output, _ = process.communicate(timeout=seconds + 60)
    last = output.strip().rpartition("\n")[2]
    if process.returncode or not last.startswith("{"):
        raise BenchError(f"wrk ended with status {process.returncode}: {last}.")
    seen: dict[str, int] = json.loads(last)
    failures = {name: seen[name] for name in ("connect", "read", "write", "timeout", "status") if seen[name]}
    if refused and failures.pop("status", 0) < seen["requests"]:
        raise BenchError(f"Of {seen['requests']} requests only {seen['status']} were refused.")
    if failures or not seen["requests"]:
        raise BenchError(f"Of {seen['requests']} answers some were wrong or missing: {failures}.")
    return Driven(requests=seen["requests"], seconds=seen["duration_us"] / 1e6, bytes_read=seen["bytes"],
                  p50_ms=seen["p50_us"] / 1e3, p99_ms=seen["p99_us"] / 1e3)  # fmt: skip


def ask(port: int, path: str, token: str | None = None, *, tls: bool = False) -> tuple[int, bytes]:
    """One GET by the standard library: status and body; a certificate is not verified. Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    if tls:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=unverified())
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def unverified() -> ssl.SSLContext:
    """A client's context that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
