"""Clients that make a TLS connection for each request, as a closed loop: with a full handshake, or a resumed one.

wrk keeps the session of the connection before and so never makes a full handshake again. Here each client says which of
the two it makes, and checks it on every connection. ``python -m bench.load.handshakes JOB`` prints one line of JSON; it
forks its clients, each of which waits for one answer at a time.
"""

import dataclasses
import json
import os
import random
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.load.workload import Workload
from bench.load.wrk import Driven, unverified
from bench.report.figures import percentile
from bench.system.machine import Cores, pin

CLIENTS: Final = 16
_TIMEOUT: Final = 10.0
_FORK: Final = get_context("fork")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Requests of the workload to 127.0.0.1:``port`` for ``seconds``, each on a connection of its own."""

    port: int
    seconds: float
    resume: bool
    """Whether each connection but a client's first resumes the session of the one before."""
    seed: int
    tokens_file: str
    paths_file: str
    clients: int = CLIENTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """What one client did."""

    answers: int
    received: int
    """Bytes of answers."""
    latencies_ms: list[float]


def drive_handshakes(port: int, workload: Workload, cores: Cores, *, seconds: float, seed: int, resume: bool) -> Driven:
    """Send requests as fast as they are answered. Raises BenchError unless each answer and handshake was right."""
    job = Job(
        port=port,
        seconds=seconds,
        resume=resume,
        seed=seed,
        tokens_file=str(workload.tokens_file),
        paths_file=str(workload.paths_file),
    )
    command = [sys.executable, "-m", "bench.load.handshakes", json.dumps(dataclasses.asdict(job))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        pin(process.pid, cores.rest)
        output, error = process.communicate(timeout=seconds + 60)
    if process.returncode:
        raise BenchError(f"The clients of TLS ended without a figure: {error.strip()[-500:]}")
    return Driven(**json.loads(output))


def run(job: Job) -> Driven:
    """Run all clients of ``job``. Raises BenchError if an answer or a handshake was another than expected."""
    pipes: list[Connection] = []
    began = time.monotonic()
    for number in range(job.clients):
        ours, theirs = _FORK.Pipe(duplex=False)
        _FORK.Process(target=_client, args=(theirs, job, number), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    counted: list[Counted] = []
    for pipe in pipes:
        try:
            said = pipe.recv()
        except EOFError:
            raise BenchError("A client ended without a count.") from None
        if isinstance(said, str):
            raise BenchError(said)
        counted.append(said)
    took = time.monotonic() - began
    latencies = [latency for one in counted for latency in one.latencies_ms]
    return Driven(
        requests=sum(one.answers for one in counted),
        seconds=took,
        bytes_read=sum(one.received for one in counted),
        p50_ms=percentile(latencies, 0.5),
        p99_ms=percentile(latencies, 0.99),
    )


def _client(pipe: Connection, job: Job, number: int) -> None:
    try:
        pipe.send(_requests(job, number))
    except (BenchError, OSError) as error:
        pipe.send(f"{type(error).__name__}: {error}")
    # The parent's exit handlers are not this process's.
    os._exit(0)


def _requests(job: Job, number: int) -> Counted:
    context, rng = unverified(), random.Random(job.seed + number)
    tokens = Path(job.tokens_file).read_text().split()
    paths = Path(job.paths_file).read_text().split()
    session: ssl.SSLSession | None = None
    latencies: list[float] = []
    received = 0
    end = time.monotonic() + job.seconds
    while (began := time.monotonic()) < end:
        request = (
            f"GET {rng.choice(paths)}?page={rng.randrange(97)}&cursor={rng.getrandbits(64):016x} HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{job.port}\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n"
            f"Authorization: Bearer {rng.choice(tokens)}\r\nConnection: close\r\n\r\n"
        )
        answer, resumed, session = _exchange(context, job.port, request.encode("ascii"), session)
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise BenchError(f"An answer began {answer[:40]!r}.")
        if resumed != (job.resume and bool(latencies)):
            raise BenchError(f"A handshake was {'resumed' if resumed else 'a full one'}.")
        if not job.resume:
            session = None
        received += len(answer)
        latencies.append((time.monotonic() - began) * 1e3)
    if not latencies:
        raise BenchError("A client got no answer.")
    return Counted(answers=len(latencies), received=received, latencies_ms=latencies)


def _exchange(
    context: ssl.SSLContext, port: int, request: bytes, session: ssl.SSLSession | None
) -> tuple[bytes, bool, ssl.SSLSession | None]:
    """One connection until the server closes it: the answer, whether it resumed ``session``, and its own session."""
    pieces: list[bytes] = []
    with socket.create_connection(("127.0.0.1", port), _TIMEOUT) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(raw, session=session) as secured:
            secured.sendall(request)
            while piece := secured.recv(65536):
                pieces.append(piece)
            return b"".join(pieces), bool(secured.session_reused), secured.session


if __name__ == "__main__":
    try:
        print(json.dumps(dataclasses.asdict(run(Job(**json.loads(sys.argv[1]))))))
    except BenchError as failed:
        sys.exit(str(failed))
