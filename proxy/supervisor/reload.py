"""A changed configuration, taken by every process of the gateway at once or by none.

The order, so that no request is lost and none is decided by parts of two configurations:

1. Everything that can fail comes first: the file was loaded and judged, new sockets are bound, every process PREPAREs.
2. The workers HOLD: what arrives waits. The authority COMMITs: the roles in the store are those of the new file.
3. The workers COMMIT and go on. Until then anything that fails is an ABORT, and nothing has changed.
4. Afterwards a process that does not follow is ended and starts with the new configuration; workers that are too many
   drain, those that are missing start, spares are replaced.

Connections stay with their workers and listening sockets open, so nothing is closed that a client knows of.
"""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from proxy.core.ipc.child_protocol import CommandName, CommandRefused
from proxy.observe.logs import Logger
from proxy.settings.addresses import Bind
from proxy.settings.model import Settings
from proxy.supervisor import listeners
from proxy.supervisor.config_generation import CONTROL, Generation, Ground
from proxy.supervisor.errors import ReloadRefused
from proxy.supervisor.listeners import ListeningSockets
from proxy.supervisor.processes import Child, Keeper

PREPARE_SECONDS: Final = 10.0
HOLD_SECONDS: Final = 2.0
COMMIT_SECONDS: Final = 5.0

FIXED: Final = ("brand", "data_dir", "store", "secret_key")
"""Settings that the store and every token stand on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """The processes that take part; each keeper has its slot's number as its place."""

    authority: Keeper
    workers: Sequence[Keeper]


def refuse_fixed(before: Settings, after: Settings) -> None:
    """Raises ``ReloadRefused`` with the names of the settings that only a restart can change."""
    changed = [name for name in FIXED if getattr(before, name) != getattr(after, name)]
    if changed:
        raise ReloadRefused(
            f"The configuration was not reloaded: {' and '.join(changed)} can only change when patgate is restarted."
        )


def binds(settings: Settings) -> dict[str, Bind]:
    """Each listener's address, by its name."""
    listen = settings.listen
    found = {CONTROL: listen.control.bind, "proxy": listen.proxy.bind}
    if listen.forward_auth is not None:
        found["forward_auth"] = listen.forward_auth.bind
    return found


def listeners_for(settings: Settings, held: Mapping[str, ListeningSockets]) -> dict[str, ListeningSockets]:
    """The listeners that ``settings`` ask for: those that are ``held`` where they serve, others bound now.

    Raises ``ListenerRefused`` with nothing new left open.
    """
    found: dict[str, ListeningSockets] = {}
    ours = {each.port for name, each in held.items() if name != CONTROL and each.bind}
    with ExitStack() as stack:
        for name, bind in binds(settings).items():
            slots = 1 if name == CONTROL else settings.workers
            known = held.get(name)
            if known is None or (known.bind and known.bind != str(bind)):
                shared = name != CONTROL
                listener = listeners.listen(
                    name, bind.host, bind.port, slots, shared, beside_ours=shared and bind.port in ours
                )
                stack.callback(listener.close)
            else:
                listener = known.grown(slots)
                stack.callback(close_others, {name: listener}, {name: known})
            found[name] = listener
        stack.pop_all()
    return found


def close_others(former: Mapping[str, ListeningSockets], kept: Mapping[str, ListeningSockets]) -> None:
    """Close the sockets of ``former`` that are not among those of ``kept``."""
    stay = {sock for listener in kept.values() for sock in listener.sockets}
    for listener in former.values():
        for sock in listener.sockets:
            if sock not in stay:
                sock.close()


class Turn:
    """One change from a generation to the next. Nobody is replaced meanwhile (``Gate.reloading``)."""

    def __init__(self, before: Generation, settings: Settings, ground: Ground, crew: Crew, log: Logger) -> None:
        self._before = before
        self._settings = settings
        self._ground = ground
        self._crew = crew
        self._log = log

    async def take(self) -> Generation:
        """The new generation, which every process runs on when this returns. Raises ``StartError``: nothing changed."""
        held = self._before.listeners
        found = listeners_for(self._settings, held)
        try:
            new = Generation(self._settings, found, self._ground)
        except OSError as error:
            close_others(found, held)
            raise ReloadRefused("The configuration was not reloaded: the system gives no descriptors.") from error
        try:
            await self._everybody_commits(new)
        except CommandRefused as error:
            self._undo(new)
            raise ReloadRefused(f"The configuration was not reloaded: {error}.") from error
        except BaseException:
            # Cancellations too: the error is raised again, and the new generation must not stay.
            self._undo(new)
            raise
        return new

    def _undo(self, new: Generation) -> None:
        for child in (self._crew.authority.serving, *(keeper.serving for keeper in self._crew.workers)):
            if child is not None:
                child.line.tell(CommandName.ABORT)
        close_others(new.listeners, self._before.listeners)
        new.close()

    async def _everybody_commits(self, new: Generation) -> None:
        authority = self._crew.authority.serving
        if authority is None:
            raise CommandRefused("there is no authority at the moment")
        control = new.listeners[CONTROL]
        fds = [new.boot_fd, control.fd()]
        prepared = authority.line.ask(CommandName.PREPARE, fds=fds, seconds=PREPARE_SECONDS, sockets=[CONTROL])
        await asyncio.gather(_named("the authority", prepared), self._workers(_preparing(new)))
        await self._workers(lambda _, child: child.line.ask(CommandName.HOLD, seconds=HOLD_SECONDS))
        try:
            await _named("the authority", authority.line.ask(CommandName.COMMIT, seconds=COMMIT_SECONDS))
        except CommandRefused as error:
            if not error.answered:
                # Perhaps it has changed the roles; its successor, with the old configuration, changes them back.
                authority.send(signal.SIGKILL)
            raise
        self._crew.authority.spec = new.authority()
        for slot, keeper in enumerate(self._crew.workers):
            if slot < new.settings.workers:
                keeper.spec = new.worker(slot)
        await self._workers(lambda _, child: child.line.ask(CommandName.COMMIT, seconds=COMMIT_SECONDS), forgiving=True)

    async def _workers(
        self, order: Callable[[int, Child], Coroutine[Any, Any, None]], *, forgiving: bool = False
    ) -> None:
        """Have every worker carry out an order. One that has ended or gives no answer is left to its keeper.

        Raises ``OrderRefused`` for one that answers that it cannot; ``forgiving``, it is ended instead.
        """
        await asyncio.gather(
            *(
                self._worker(keeper, child, order(slot, child), forgiving)
                for slot, keeper in enumerate(self._crew.workers)
                if (child := keeper.serving) is not None and child.line.is_open
            )
        )

    async def _worker(self, keeper: Keeper, child: Child, ordered: Coroutine[Any, Any, None], forgiving: bool) -> None:
        try:
            await _named(f"the worker {keeper.spec.name}", ordered)
        except CommandRefused as error:
            if error.answered and not forgiving:
                raise
            self._log.error("worker does not follow a reload and is ended", child=keeper.spec.name, problem=error)
            child.send(signal.SIGKILL)
            await child.ended()


def _preparing(new: Generation) -> Callable[[int, Child], Coroutine[Any, Any, None]]:
    slots = new.settings.workers

    def prepare(slot: int, child: Child) -> Coroutine[Any, Any, None]:
        # One that is too many goes on with the sockets of another's until it drains, so that nobody waits in vain.
        sockets = new.sockets(slot % slots, slots)
        return child.line.ask(
            CommandName.PREPARE,
            fds=[new.worker_boot_fd, *(fd for _, fd in sockets)],
            seconds=PREPARE_SECONDS,
            sockets=[name for name, _ in sockets],
        )

    return prepare


async def _named(who: str, ordered: Coroutine[Any, Any, None]) -> None:
    try:
        await ordered
    except CommandRefused as error:
        raise CommandRefused(f"{who} could not follow: {error}", answered=error.answered) from error
