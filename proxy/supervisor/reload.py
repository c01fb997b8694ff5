"""Configuration reload: two-phase commit of a new configuration to every process of the gateway, or to none.

``supervise`` receives SIGHUP and calls it.

The order ensures that no request is lost and none is decided by parts of two configurations:

1. Everything that can fail comes first: the file is loaded and validated, new sockets are bound, every process
   PREPAREs.
2. The workers HOLD: requests that arrive wait. The authority COMMITs: the store gets the roles of the new file.
3. The workers COMMIT and continue. Any failure before that is an ABORT, and nothing has changed.
4. Afterwards a process that does not commit is killed and restarts with the new configuration; surplus workers drain,
   missing ones start, spares are replaced.

Connections stay with their workers and listening sockets stay open, so clients notice nothing.
"""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from proxy.core.ipc.child_protocol import CommandName, CommandRefused
from proxy.observe.logs import Logger
from proxy.settings.addresses import Bind
from proxy.settings.model import LONGEST_SHARED_LEASE, Settings
from proxy.settings.store_urls import is_shared
from proxy.supervisor import listeners
from proxy.supervisor.child import Child
from proxy.supervisor.config_generation import CONTROL, Generation, StartContext
from proxy.supervisor.errors import ReloadRefused
from proxy.supervisor.keeper import Keeper
from proxy.supervisor.listeners import ListeningSockets

PREPARE_SECONDS: Final = 10.0
HOLD_SECONDS: Final = 2.0
COMMIT_SECONDS: Final = 5.0
SHARED_COMMIT_SECONDS: Final = COMMIT_SECONDS + 2 * LONGEST_SHARED_LEASE
"""The same for the authority, where a change of roles may have to wait for the leases of other nodes."""

FIXED: Final = (
    "brand",
    "data_dir",
    "store",
    "store_session",
    "store_password",
    "store_feed",
    "failover",
    "secret_key",
)
"""Settings that the store and every token depend on."""


def refuse_fixed(before: Settings, after: Settings) -> None:
    """Raise ``ReloadRefused`` with the names of changed settings that only a restart can change."""
    changed = [name for name in FIXED if getattr(before, name) != getattr(after, name)]
    if changed:
        raise ReloadRefused(
            f"The configuration was not reloaded: {' and '.join(changed)} can only change when patgate is restarted."
        )


def binds(settings: Settings) -> dict[str, Bind]:
    """The configured address of each listener by name."""
    listen = settings.listen
    addresses = {CONTROL: listen.control.bind, "proxy": listen.proxy.bind}
    addresses.update({name: listener.bind for name, listener in listen.for_ingresses()})
    return addresses


def listeners_for(settings: Settings, held: Mapping[str, ListeningSockets]) -> dict[str, ListeningSockets]:
    """The listeners for ``settings``: those of ``held`` whose address fits, the others newly bound.

    Raises ``ListenerRefused`` and closes what it opened.
    """
    result: dict[str, ListeningSockets] = {}
    ours = {each.port for name, each in held.items() if name != CONTROL and each.bind}
    with ExitStack() as stack:
        for name, bind in binds(settings).items():
            slots = 1 if name == CONTROL else settings.workers
            known = held.get(name)
            if known is None or (known.bind and known.bind != str(bind)):
                shared = name != CONTROL
                if bind.path:
                    listener = listeners.listen_unix(name, bind.path, socket_mode(settings, name))
                else:
                    beside = shared and bind.port in ours
                    listener = listeners.listen(name, bind.host, bind.port, slots, shared, beside_ours=beside)
                stack.callback(listener.close)
            else:
                listener = known.with_slots(slots)
                stack.callback(close_others, {name: listener}, {name: known})
            result[name] = listener
        stack.pop_all()
    return result


def socket_mode(settings: Settings, name: str) -> int:
    """The mode of the file of the unix socket of the listener called ``name``."""
    own = dict(settings.listen.for_ingresses()).get(name)
    return 0o600 if own is None else int(own.socket_mode, 8)


def close_others(former: Mapping[str, ListeningSockets], kept: Mapping[str, ListeningSockets]) -> None:
    """Close the sockets of ``former`` that ``kept`` does not use."""
    stay = {sock for listener in kept.values() for sock in listener.sockets}
    for listener in former.values():
        listener.close(stay)


class Reload:
    """One change from a generation to the next. No child is replaced meanwhile (``Gate.reloading``).

    ``workers`` are in the order of their slots.
    """

    def __init__(
        self,
        before: Generation,
        settings: Settings,
        context: StartContext,
        log: Logger,
        *,
        authority: Keeper,
        workers: Sequence[Keeper],
    ) -> None:
        self._before = before
        self._settings = settings
        self._context = context
        self._log = log
        self._authority = authority
        self._workers = workers

    async def run(self) -> Generation:
        """Return the new generation once every process runs it. Raises ``StartError`` when nothing has changed."""
        former = self._before.listeners
        current = listeners_for(self._settings, former)
        try:
            new = Generation(self._settings, current, self._context)
        except OSError as error:
            close_others(current, former)
            raise ReloadRefused("The configuration was not reloaded: the system gives no descriptors.") from error
        try:
            await self._commit(new)
        except CommandRefused as error:
            self._undo(new)
            raise ReloadRefused(f"The configuration was not reloaded: {error}.") from error
        except BaseException:
            # Cancellation too: the new generation must be closed before the error is raised again.
            self._undo(new)
            raise
        for listener in new.listeners.values():
            try:
                listener.set_mode(socket_mode(self._settings, listener.name))
            except OSError as error:
                self._log.error("the mode of a unix socket cannot be set", listener=listener.name, problem=error)
        return new

    def _undo(self, new: Generation) -> None:
        for child in (self._authority.serving, *(keeper.serving for keeper in self._workers)):
            if child is not None:
                child.channel.tell(CommandName.ABORT)
        close_others(new.listeners, self._before.listeners)
        new.close()

    async def _commit(self, new: Generation) -> None:
        authority = self._authority.serving
        if authority is None:
            raise CommandRefused("there is no authority at the moment")
        control = new.listeners[CONTROL]
        fds = [new.boot_fd, control.fd()]
        prepared = authority.channel.ask(CommandName.PREPARE, fds=fds, seconds=PREPARE_SECONDS, sockets=[CONTROL])
        await asyncio.gather(_named("the authority", prepared), self._command_workers(_preparing(new)))
        await self._command_workers(lambda _, child: child.channel.ask(CommandName.HOLD, seconds=HOLD_SECONDS))
        seconds = SHARED_COMMIT_SECONDS if is_shared(new.settings.store) else COMMIT_SECONDS
        try:
            await _named("the authority", authority.channel.ask(CommandName.COMMIT, seconds=seconds))
        except CommandRefused as error:
            if not error.answered:
                # It may have changed the roles; its successor, with the old configuration, changes them back.
                authority.send(signal.SIGKILL)
            raise
        self._authority.spec = new.authority()
        for slot, keeper in enumerate(self._workers):
            if slot < new.settings.workers:
                keeper.spec = new.worker(slot)
        await self._command_workers(
            lambda _, child: child.channel.ask(CommandName.COMMIT, seconds=COMMIT_SECONDS), kill_refusing=True
        )

    async def _command_workers(
        self, command: Callable[[int, Child], Coroutine[Any, Any, None]], *, kill_refusing: bool = False
    ) -> None:
        """Send every worker a command and wait for the answers. A worker that gives no answer is killed and replaced.

        Raises ``CommandRefused`` when a worker answers that it cannot; with ``kill_refusing`` that worker is killed
        instead.
        """
        await asyncio.gather(
            *(
                self._command_worker(keeper, child, command(slot, child), kill_refusing)
                for slot, keeper in enumerate(self._workers)
                if (child := keeper.serving) is not None and child.channel.is_open
            )
        )

    async def _command_worker(
        self, keeper: Keeper, child: Child, answer: Coroutine[Any, Any, None], kill_refusing: bool
    ) -> None:
        try:
            await _named(f"the worker {keeper.spec.name}", answer)
        except CommandRefused as error:
            if error.answered and not kill_refusing:
                raise
            self._log.error("worker does not follow a reload and is ended", child=keeper.spec.name, problem=error)
            child.send(signal.SIGKILL)
            await child.ended()


def _preparing(new: Generation) -> Callable[[int, Child], Coroutine[Any, Any, None]]:
    slots = new.settings.workers

    def prepare(slot: int, child: Child) -> Coroutine[Any, Any, None]:
        # A surplus worker accepts from another slot's sockets until it drains, so that no client waits in vain.
        sockets = new.sockets(slot % slots, slots)
        return child.channel.ask(
            CommandName.PREPARE,
            fds=[new.worker_boot_fd, *(fd for _, fd in sockets)],
            seconds=PREPARE_SECONDS,
            sockets=[name for name, _ in sockets],
        )

    return prepare


async def _named(process: str, answer: Coroutine[Any, Any, None]) -> None:
    try:
        await answer
    except CommandRefused as error:
        raise CommandRefused(f"{process} could not follow: {error}", answered=error.answered) from error
