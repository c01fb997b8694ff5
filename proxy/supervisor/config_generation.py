"""Configuration generation: the settings documents that children read, and the command line of each child.

What every generation of one start shares (lock, lifeline, the name in ``Via``) is the ``StartContext``. Listening
sockets pass from one generation to the next.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from proxy.core.ipc.child_protocol import SPARE_SUFFIX
from proxy.settings.model import Settings
from proxy.supervisor.child import ChildSpec, command_line, in_memory
from proxy.supervisor.listeners import ListeningSockets

CONTROL = "control"


@dataclass(frozen=True, kw_only=True, slots=True)
class StartContext:
    """Descriptors and names that are the same in every generation of one start."""

    lock_fd: int
    lifeline_fd: int
    pseudonym: str
    accept_older_store: bool


class Generation:
    """``settings`` served on ``listeners``. ``close`` closes the documents; the sockets belong to the caller."""

    def __init__(self, settings: Settings, listeners: Mapping[str, ListeningSockets], context: StartContext) -> None:
        self.settings = settings
        self.listeners = dict(listeners)
        self._context = context
        # The configuration reaches a child through an anonymous file, never through its command line or environment.
        self.boot_fd = in_memory(settings.to_boot_json().encode())
        try:
            self.worker_boot_fd = in_memory(settings.to_worker_json().encode())
        except OSError:
            os.close(self.boot_fd)
            raise

    @property
    def addresses(self) -> dict[str, str]:
        """The address of each listener by name."""
        return {name: self.listeners[name].address for name in sorted(self.listeners)}

    def close(self) -> None:
        """Close the documents, from which no further child starts."""
        os.close(self.boot_fd)
        os.close(self.worker_boot_fd)

    def sockets(self, slot: int, slots: int) -> list[tuple[str, int]]:
        """Listener name and descriptor of each socket that the worker of ``slot`` accepts from."""
        listeners = [each for name, each in self.listeners.items() if name != CONTROL]
        return [(listener.name, fd) for listener in listeners for fd in listener.fds(slot, slots)]

    def authority(self) -> ChildSpec:
        """How to start the authority."""
        control_fd = self.listeners[CONTROL].fd()
        return ChildSpec(
            name="authority",
            command=command_line("authority", *self._boot(), "--control-fd", str(control_fd)),
            fds=(self.boot_fd, control_fd, self._context.lock_fd),
            lifeline_fd=self._context.lifeline_fd,
            # The operator accepts the store in its current state, not what a later start may find.
            first=("--accept-older-store",) if self._context.accept_older_store else (),
            later=("--successor",),
        )

    def worker(self, slot: int) -> ChildSpec:
        """How to start the gateway worker of one slot."""
        sockets = self.sockets(slot, self.settings.workers)
        arguments = ["--slot", str(slot), *self._worker_boot()]
        for listener in dict.fromkeys(name for name, _ in sockets):
            fds = [str(fd) for name, fd in sockets if name == listener]
            arguments += [f"--{listener.replace('_', '-')}-fd", *fds]
        return ChildSpec(
            name=f"gateway-{slot}",
            command=command_line("gateway", *arguments),
            fds=(self.worker_boot_fd, self._context.lock_fd, *(fd for _, fd in sockets)),
            lifeline_fd=self._context.lifeline_fd,
        )

    def spare_authority(self) -> ChildSpec:
        """How to start the spare of the authority."""
        authority = self.authority()
        return ChildSpec(
            name="authority" + SPARE_SUFFIX,
            command=command_line("authority" + SPARE_SUFFIX, *self._boot()),
            fds=authority.fds,
            lifeline_fd=authority.lifeline_fd,
        )

    def spare_worker(self) -> ChildSpec:
        """How to start the spare of the workers, with the sockets of all slots."""
        slots = self.settings.workers
        held = sorted({fd for slot in range(slots) for _, fd in self.sockets(slot, slots)})
        return ChildSpec(
            name="gateway" + SPARE_SUFFIX,
            command=command_line("gateway" + SPARE_SUFFIX, *self._worker_boot(), "--held-fds", *map(str, held)),
            fds=(self.worker_boot_fd, self._context.lock_fd, *held),
            lifeline_fd=self._context.lifeline_fd,
        )

    def _boot(self) -> tuple[str, ...]:
        return ("--boot-fd", str(self.boot_fd))

    def _worker_boot(self) -> tuple[str, ...]:
        # The same pseudonym in all generations: it identifies requests that come back in a loop.
        return ("--boot-fd", str(self.worker_boot_fd), "--pseudonym", self._context.pseudonym)
