"""One configuration as the supervisor runs it: the documents that children read, and how each child is started.

What outlives a configuration (lock, lifeline, the name in ``Via``) is the ``Ground``; listening sockets pass from one
generation to the next.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from proxy.core.ipc.child_protocol import SPARE_SUFFIX
from proxy.settings.model import Settings
from proxy.supervisor.listeners import ListeningSockets
from proxy.supervisor.processes import ChildSpec, command, in_memory

CONTROL = "control"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """What every generation of one start has in common."""

    lock_fd: int
    lifeline_fd: int
    pseudonym: str
    accept_older_store: bool


class Generation:
    """``settings`` on ``listeners``. The documents are closed by ``close``, the sockets by their owner."""

    def __init__(self, settings: Settings, listeners: Mapping[str, ListeningSockets], ground: Ground) -> None:
        self.settings = settings
        self.listeners = dict(listeners)
        self._ground = ground
        # The configuration reaches a child through an anonymous file, never through its command line or environment.
        self.boot_fd = in_memory(settings.to_boot_json().encode())
        try:
            self.worker_boot_fd = in_memory(settings.to_worker_json().encode())
        except OSError:
            os.close(self.boot_fd)
            raise

    @property
    def addresses(self) -> dict[str, str]:
        """Where each listener is, by its name."""
        return {name: self.listeners[name].address for name in sorted(self.listeners)}

    def close(self) -> None:
        """Close the documents; no child is started from them any more."""
        os.close(self.boot_fd)
        os.close(self.worker_boot_fd)

    def sockets(self, slot: int, slots: int) -> list[tuple[str, int]]:
        """Listener and descriptor of each socket that a worker accepts from."""
        ports = [each for name, each in self.listeners.items() if name != CONTROL]
        return [(port.name, fd) for port in ports for fd in port.fds(slot, slots)]

    def authority(self) -> ChildSpec:
        """The authority."""
        control_fd = self.listeners[CONTROL].fd()
        return ChildSpec(
            name="authority",
            command=command("authority", *self._boot(), "--control-fd", str(control_fd)),
            fds=(self.boot_fd, control_fd, self._ground.lock_fd),
            lifeline_fd=self._ground.lifeline_fd,
            # What the operator acknowledges is the store as it is now, not whatever a later start may find.
            first=("--accept-older-store",) if self._ground.accept_older_store else (),
            later=("--successor",),
        )

    def worker(self, slot: int) -> ChildSpec:
        """The gateway worker of one slot."""
        sockets = self.sockets(slot, self.settings.workers)
        arguments = ["--slot", str(slot), *self._worker_boot()]
        for listener in dict.fromkeys(name for name, _ in sockets):
            fds = [str(fd) for name, fd in sockets if name == listener]
            arguments += [f"--{listener.replace('_', '-')}-fd", *fds]
        return ChildSpec(
            name=f"gateway-{slot}",
            command=command("gateway", *arguments),
            fds=(self.worker_boot_fd, self._ground.lock_fd, *(fd for _, fd in sockets)),
            lifeline_fd=self._ground.lifeline_fd,
        )

    def spare_authority(self) -> ChildSpec:
        """A process that stands by for the authority."""
        authority = self.authority()
        return ChildSpec(
            name="authority" + SPARE_SUFFIX,
            command=command("authority" + SPARE_SUFFIX, *self._boot()),
            fds=authority.fds,
            lifeline_fd=authority.lifeline_fd,
        )

    def spare_worker(self) -> ChildSpec:
        """A process that stands by for any worker, with the sockets of all."""
        slots = self.settings.workers
        held = sorted({fd for slot in range(slots) for _, fd in self.sockets(slot, slots)})
        return ChildSpec(
            name="gateway" + SPARE_SUFFIX,
            command=command("gateway" + SPARE_SUFFIX, *self._worker_boot(), "--held-fds", *map(str, held)),
            fds=(self.worker_boot_fd, self._ground.lock_fd, *held),
            lifeline_fd=self._ground.lifeline_fd,
        )

    def _boot(self) -> tuple[str, ...]:
        return ("--boot-fd", str(self.boot_fd))

    def _worker_boot(self) -> tuple[str, ...]:
        # The same name in all generations: requests that come back are known by it.
        return ("--boot-fd", str(self.worker_boot_fd), "--pseudonym", self._ground.pseudonym)
