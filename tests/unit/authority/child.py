"""The authority as a real process with a boot file, a lifeline and a ready pipe, as the supervisor starts it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from proxy.settings.model import Settings
from proxy.supervisor_channel import pair
from tests.support.process import HANGS_SECONDS


class AuthorityProcess:
    """One start of ``python -m proxy.app authority``; this object holds the supervisor's ends of its pipes."""

    def __init__(self, settings: Settings, *arguments: str, listener: socket.socket | None = None) -> None:
        self.data_dir = settings.data_dir
        boot = os.memfd_create("boot")
        os.pwrite(boot, settings.to_boot_json().encode(), 0)
        lifeline, self._lifeline = os.pipe()
        self._ready, ready = os.pipe()
        self.channel, channel = pair()
        self.log = settings.data_dir / f"log-{time.monotonic_ns()}"
        fds = [boot, lifeline, ready, channel.fileno()]
        command = [sys.executable, "-m", "proxy.app", "authority", *arguments]
        command += ["--boot-fd", str(boot), "--lifeline-fd", str(lifeline), "--ready-fd", str(ready)]
        command += ["--channel-fd", str(channel.fileno())]
        if listener is not None:
            command += ["--control-fd", str(listener.fileno())]
            fds.append(listener.fileno())
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, pass_fds=fds, stderr=log)
        for fd in (boot, lifeline, ready, channel.detach()):
            os.close(fd)

    def ready(self, seconds: float = HANGS_SECONDS) -> str:
        """The line that the process writes to its ready pipe."""
        line = b""
        deadline = time.monotonic() + seconds
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self._ready], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, "the authority did not become ready in time"
            data = os.read(self._ready, 4096)
            assert data, self.log.read_text()
            line += data
        return line.decode()

    def cpu_seconds(self) -> float:
        """Processor time used so far, which does not depend on the machine's load (proc(5), stat)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close_lifeline(self) -> None:
        """Close the lifeline, as the kernel does for a supervisor that was killed."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(HANGS_SECONDS)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(HANGS_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.close_lifeline()
        os.close(self._ready)
        self.channel.close()


def request(path: Path, method: str, target: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """Send one HTTP request over a unix socket; returns the status and the JSON body of the answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(HANGS_SECONDS)
        connection.connect(str(path))
        payload = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        connection.sendall(head.encode() + payload)
        received = b""
        while data := connection.recv(65536):
            received += data
    status, _, rest = received.partition(b"\r\n")
    return int(status.split()[1]), json.loads(rest.partition(b"\r\n\r\n")[2] or b"{}")
