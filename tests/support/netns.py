"""Network namespaces for tests: each host has one of its own, and a veth link to a bridge in a namespace in the middle.

Rules of this module:
1. Nothing is named in the file system and nothing is changed in the namespace of the tests. A namespace lives as long
   as a process that reads from a pipe of ours, so that it ends with us however we end, and its links end with it.
2. Paths do not belong to a network namespace: tests reach a host's unix(7) sockets whatever happens to its link.
3. Who is not root uses a user namespace, in which they are; the programs in it see their files as root's.
4. It needs ``ip`` and ``tc`` (iproute2), ``nsenter`` and ``unshare`` (util-linux).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final

COMMAND_SECONDS: Final = 60.0
_SUBNET: Final = "10.99.0"
_DROPS: Final = ("root", "pfifo", "limit", "0")
"""A queue without a place: every packet that leaves by its interface is dropped, without an error for the sender."""


class Namespace:
    """A network namespace with its loopback interface up; a context manager, or ``close`` it."""

    def __init__(self, beside: Namespace | None = None) -> None:
        """``beside``: another one, of the same user namespace; needed for links between them."""
        enter = [] if beside is None else beside.user_prefix
        make = ["--user", "--map-root-user"] if os.geteuid() != 0 and beside is None else []
        self._holder = subprocess.Popen(
            [*enter, "unshare", *make, "--net", "--", "cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, start_new_session=True,
        )  # fmt: skip
        assert self._holder.stdin and self._holder.stdout and self._holder.stderr
        try:
            # What ``cat`` answers shows that the namespace exists.
            self._holder.stdin.write(b"\n")
            answered = self._holder.stdout.read(1) == b"\n"
        except BrokenPipeError:
            answered = False
        if not answered:
            problem = self._holder.stderr.read().decode(errors="replace").strip()
            self.close()
            raise AssertionError(f"no network namespace: {problem}")
        self.run("ip", "link", "set", "lo", "up")

    def __enter__(self) -> Namespace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process that holds the namespace."""
        return self._holder.pid

    @property
    def user_prefix(self) -> list[str]:
        """The beginning of a command that enters the user namespace; nothing for root."""
        if os.geteuid() == 0:
            return []
        return ["nsenter", f"--user=/proc/{self.pid}/ns/user", "--preserve-credentials", "--"]

    @property
    def prefix(self) -> tuple[str, ...]:
        """The command that runs the command after it in this namespace, in the same process."""
        return (*(self.user_prefix[:-1] or ["nsenter"]), f"--net=/proc/{self.pid}/ns/net", "--")

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a short command in the namespace and return its output; with ``check`` it must succeed."""
        done = subprocess.run(
            [*self.prefix, *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=COMMAND_SECONDS, check=False, env={**os.environ, "PATH": _path()},
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stderr.strip()}"
        return done.stdout

    def close(self) -> None:
        """End the holder. The namespace ends with the last process in it."""
        for pipe in (self._holder.stdin, self._holder.stdout, self._holder.stderr):
            if pipe is not None:
                pipe.close()
        self._holder.kill()
        self._holder.wait()


@dataclass(kw_only=True, slots=True)
class Host:
    """A namespace with an address, and the ways in which its link can fail. ``mend`` ends all of them."""

    namespace: Namespace
    hub: Namespace
    address: str
    port: str
    """The name of the link's other end, in the hub."""

    @property
    def prefix(self) -> Sequence[str]:
        return self.namespace.prefix

    def cut(self) -> None:
        """Take the link down at the hub: packets of both directions vanish, and nobody is told."""
        self.hub.run("ip", "link", "set", self.port, "down")

    def unplug(self) -> None:
        """Take the host's own interface down: it has no route then, so that every attempt fails at once."""
        self.namespace.run("ip", "link", "set", "eth0", "down")

    def deafen(self) -> None:
        """Drop what is sent to the host; what it sends arrives."""
        self.hub.run("tc", "qdisc", "replace", "dev", self.port, *_DROPS)

    def mute(self) -> None:
        """Drop what the host sends; what is sent to it arrives."""
        self.namespace.run("tc", "qdisc", "replace", "dev", "eth0", *_DROPS)

    def mend(self) -> None:
        self.hub.run("tc", "qdisc", "del", "dev", self.port, "root", check=False)
        self.namespace.run("tc", "qdisc", "del", "dev", "eth0", "root", check=False)
        self.namespace.run("ip", "link", "set", "eth0", "up")
        self.hub.run("ip", "link", "set", self.port, "up")


class Network:
    """A hub with a bridge, which has the address ``gateway``, and hosts on it; a context manager."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self.hosts: list[Host] = []
        self.gateway = f"{_SUBNET}.1"
        self.hub = self._open.enter_context(Namespace())
        try:
            self.hub.run("ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0")
            self.hub.run("ip", "address", "add", f"{self.gateway}/24", "dev", "br0")
            self.hub.run("ip", "link", "set", "br0", "up")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def add(self) -> Host:
        """One more host."""
        number = len(self.hosts)
        namespace = self._open.enter_context(Namespace(self.hub))
        host = Host(namespace=namespace, hub=self.hub, address=f"{_SUBNET}.{10 + number}", port=f"veth{number}")
        self.hub.run(
            "ip", "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", str(namespace.pid)
        )
        self.hub.run("ip", "link", "set", host.port, "master", "br0")
        self.hub.run("ip", "link", "set", host.port, "up")
        namespace.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        namespace.run("ip", "link", "set", "eth0", "up")
        self.hosts.append(host)
        return host


def _path() -> str:
    """Debian's ``ip`` and ``tc`` are in directories that an ordinary user's PATH lacks."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
