"""Large bodies, one download and one upload: throughput beside unbuffered nginx, and the worker's memory.

Interleaved rounds: in each, every gateway carries the same gigabyte down and then up, alone. The backend is one nginx
that answers with a file (sendfile) and one process that discards what it receives; the client is curl. Neither looks at
the bytes, so that the gateway between them is the limit. nginx runs twice: without tuning, the reference of the
promise, and with buffers of 256 KiB instead of its 8 and 16, its best configuration.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Final

from bench.errors import BenchError
from bench.load.workload import mint
from bench.report.figures import Better, Figure, Part, Run, Table, spread
from bench.system.cpu_time import cpu_ns
from bench.system.machine import Cores, pin, require
from bench.system.nginx import free_port, run_nginx
from bench.testbed import LOOPBACK, MIB, Testbed, beside, received, run_testbed, warm_tokens

BYTES: Final = 1 << 30
ROUNDS: Final = 5
_DOWN: Final = "/v1/files/down"
_UP: Final = "/v1/uploads/up"

_FILES: Final = """
sendfile on;
server {{
  listen 127.0.0.1:{port};
  location = {down} {{ alias {file}; }}
}}
"""
_NGINX: Final = """
map_hash_bucket_size 256;
map $http_authorization $user {{ default ""; "Bearer {token}" u0; }}
upstream files {{ server 127.0.0.1:{files}; keepalive 8; }}
upstream sink {{ server 127.0.0.1:{sink}; keepalive 8; }}
server {{
  listen 127.0.0.1:{port};
  client_max_body_size 0;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Authorization "";
  proxy_set_header X-Auth-User $user;
  proxy_buffering off;
  proxy_request_buffering off;
  {buffers}
  location /v1/files/ {{ if ($user = "") {{ return 401; }} proxy_pass http://files; }}
  location /v1/uploads/ {{ if ($user = "") {{ return 401; }} proxy_pass http://sink; }}
}}
"""
_LARGE_BUFFERS: Final = "proxy_buffer_size 256k; proxy_buffers 8 256k; client_body_buffer_size 256k;"
_PATGATE: Final = """\
upstreams:
  files: {{ servers: ["http://127.0.0.1:{files}"] }}
  sink: {{ servers: ["http://127.0.0.1:{sink}"] }}
routes:
  - {{ path: "/v1/files/{{id}}", upstream: files, entity: files }}
  - {{ path: "/v1/uploads/{{id}}", upstream: sink, entity: uploads }}
"""


def measure(run: Run) -> Part:
    """Carry ``run.entries`` bytes in each direction ``run.rounds`` times. Raises BenchError if a byte is missing."""
    size, rounds = run.entries or BYTES, run.rounds or ROUNDS
    speeds: dict[tuple[str, str], list[float]] = {}
    costs: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        sink = stack.enter_context(_sink(run.cores))
        files = stack.enter_context(_files(run.directory, run.cores, size))
        tokens = mint(1)
        gateways: dict[str, tuple[int, int]] = {}
        for name, buffers in (("nginx", ""), ("nginx, large buffers", _LARGE_BUFFERS)):
            port = free_port()
            text = _NGINX.format(port=port, token=tokens[0], files=files, sink=sink, buffers=buffers)
            directory = run.directory / f"nginx{len(gateways)}"
            gateways[name] = port, stack.enter_context(run_nginx(directory, text, port, run.cores.subject))
        text = _PATGATE.format(files=files, sink=sink)
        patgate = stack.enter_context(run_testbed(run.directory / "patgate", run.cores, text, tokens))
        gateways["patgate"] = patgate.port, patgate.worker
        warm_tokens(patgate.port, _UP, tokens)
        payload = run.directory / "file"
        before = _memory_from_here(patgate)
        for name, (port, _) in gateways.items():  # pages, connections and allocators warm
            for direction in ("down", "up"):
                _carry(direction, name, port, tokens[0], payload, run.cores, size)
        for number in range(rounds):
            for name, (port, worker) in list(gateways.items())[:: 1 if number % 2 == 0 else -1]:
                for direction in ("down", "up"):
                    before_ns = cpu_ns((worker,))
                    speed = _carry(direction, name, port, tokens[0], payload, run.cores, size)
                    speeds.setdefault((name, direction), []).append(speed)
                    costs.setdefault((name, direction), []).append((cpu_ns((worker,)) - before_ns) / size)
        grown = (patgate.peak() - before) / MIB
    return _part(size, rounds, speeds, costs, grown)


def _memory_from_here(patgate: Testbed) -> int:
    patgate.reset_peak()
    return patgate.resident()


_Values = Mapping[tuple[str, str], list[float]]
"""By gateway and direction."""


def _part(size: int, rounds: int, speeds: _Values, costs: _Values, grown: float) -> Part:
    def ratios(direction: str, reference: str) -> list[float]:
        pairs = zip(speeds["patgate", direction], speeds[reference, direction], strict=True)
        return [ours / theirs for ours, theirs in pairs]

    names = list(dict.fromkeys(name for name, _ in speeds))
    rows = [
        (name, *(f"{median(speeds[name, direction]) / 1e6:,.0f}" for direction in ("down", "up")),
         *(f"{median(ratios(direction, name)):.2f}" for direction in ("down", "up")),
         *(f"{median(costs[name, direction]):.2f}" for direction in ("down", "up")))
        for name in names
    ]  # fmt: skip
    carried = f"{size / 1e9:.2f} GB"
    return Part(
        figures=(
            *(
                Figure(what=f"{carried} {direction}: throughput, ratio to nginx unbuffered",
                       spread=spread(ratios(direction, "nginx")), bound=0.7, aim=0.9, better=Better.HIGHER)
                for direction in ("down", "up")
            ),
            Figure(what=f"{carried} each way: growth of the worker's memory at its peak", spread=spread([grown]),
                   bound=16, unit=" MiB"),
        ),
        tables=(
            Table(head=("one body at a time", "down, MB/s", "up, MB/s", "patgate's ratio to it, down", "up",
                        "CPU of the worker, s/GB, down", "up"),
                  rows=tuple(rows)),
        ),
        notes=(
            f"Median of {rounds} interleaved rounds, after one that counts for the memory alone. nginx has "
            "`proxy_buffering off` and `proxy_request_buffering off`, in the second row buffers of 256 KiB as well.",
            "The client is curl; the backend an nginx that answers with a file, and a process that discards what it is "
            "sent without copying it. They share the other core.",
        ),
    )  # fmt: skip


def _carry(direction: str, name: str, port: int, token: str, payload: Path, cores: Cores, size: int) -> float:
    """Bytes per second, as curl counts them."""
    if direction == "down":
        return _curl(name, port, _DOWN, token, cores, size, [])
    return _curl(name, port, _UP, token, cores, size, ["--upload-file", str(payload), "--header", "Expect:"])


def _curl(name: str, port: int, path: str, token: str, cores: Cores, size: int, options: list[str]) -> float:
    command = [require("curl", "curl"), "--silent", "--show-error", "--output", "/dev/null", "--max-time", "300"]
    command += ["--header", f"Authorization: Bearer {token}", "--write-out", "%{json}", *options]
    with subprocess.Popen([*command, f"http://{LOOPBACK}:{port}{path}"], stdout=subprocess.PIPE, text=True) as process:
        pin(process.pid, cores.rest)
        output, _ = process.communicate(timeout=330)
    seen = json.loads(output) if process.returncode == 0 else {}
    carried: int = max(seen.get("size_download", 0), seen.get("size_upload", 0))
    if seen.get("http_code") != 200 or carried < size:
        status = seen.get("http_code", "nothing")
        raise BenchError(f"{name} answered {status} and carried {carried:,} of {size:,} bytes to or from {path}.")
    seconds: float = seen["time_total"]
    return carried / seconds


@contextmanager
def _files(directory: Path, cores: Cores, size: int) -> Iterator[int]:
    """An nginx that serves one file of ``size`` bytes, all in memory and none on the disk; gives its port."""
    file, port = directory / "file", free_port()
    with file.open("wb") as sparse:
        sparse.truncate(size)
    text = _FILES.format(port=port, down=_DOWN, file=file)
    with run_nginx(directory / "files", text, port, cores.rest):
        yield port


@contextmanager
def _sink(cores: Cores) -> Iterator[int]:
    """A backend that reads a request's body to its end and answers 200; gives its port."""
    with beside(_discard, cores.rest) as pipe:
        yield int(received(pipe, 10, "the discarding backend listens")["port"])


def _discard(pipe: Connection) -> None:
    listener = socket.create_server((LOOPBACK, 0))
    pipe.send({"port": listener.getsockname()[1]})
    with selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        ready.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is pipe:
                    return
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    ready.register(connection, selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket) and not _discard_one(key.fileobj):
                    ready.unregister(key.fileobj)
                    key.fileobj.close()


def _discard_one(connection: socket.socket) -> bool:
    """Serve one request; whether there may be another. Trusts its clients: well-behaved gateways, one at a time."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(65536)
        if not data:
            return False
        head += data
    head, _, body = head.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    left = int(length[1]) - len(body) if length else 0
    nowhere = bytearray(MIB)
    while left > 0:
        # tcp(7): with MSG_TRUNC the kernel drops the bytes and says how many they were; the buffer stays untouched.
        received = connection.recv_into(nowhere, min(left, MIB), socket.MSG_TRUNC)
        if not received:
            return False
        left -= received
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    return True
