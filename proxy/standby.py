"""A process that has loaded everything and opened nothing, and waits until it is needed.

Loading the libraries is most of a start; a spare has it behind it when the process that it stands by for dies. Rules:

1. Until its orders come a spare opens no store, no page and no socket; what it inherited lies unused. It cannot be
   mistaken for a process that serves: it has no link, counts nothing, and its role on the command line ends in
   ``-spare``, until it takes the other's place.
2. It loads in a thread of low priority. On Linux a nice value belongs to a thread (sched(7)) and cannot be lowered
   again without privilege; the thread that will serve must keep the usual one.
3. It ends when the lifeline's other end closes, or that of its orders, which the supervisor alone holds.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from proxy.core.ipc.child_protocol import SPARE

T = TypeVar("T")

_NICE: Final = 5
_ORDERS_BYTES: Final = 4096
_ARG_START: Final = 45
"""Place of ``arg_start`` in /proc/self/stat behind the command's name (proc(5), field 48)."""


def stand_by(load: Callable[[], T], *, orders_fd: int, lifeline_fd: int, ready_fd: int) -> tuple[T, list[str]] | None:
    """Load, say so, and wait: what was loaded and the arguments to go on with, or ``None`` when it is not needed.

    ``load`` runs once, in another thread; what it raises is raised here.
    """
    loaded: list[T] = []
    failed: list[BaseException] = []

    def loading() -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            loaded.append(load())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that can end the process
            failed.append(error)
        # The supervisor gives orders to a spare that has said this, and to no other.
        with contextlib.suppress(OSError):
            os.write(done_out, b"\0")

    done_in, done_out = os.pipe()
    thread = threading.Thread(target=loading, name="load", daemon=True)
    thread.start()
    if not _until_readable(done_in, lifeline_fd, orders_fd):
        return None
    thread.join()
    for fd in (done_in, done_out):
        os.close(fd)
    if failed:
        raise failed[0]
    gc.freeze()
    with contextlib.suppress(BrokenPipeError):
        os.write(ready_fd, SPARE)
    if not _until_readable(orders_fd, lifeline_fd):
        return None
    orders = os.read(orders_fd, _ORDERS_BYTES)
    os.close(orders_fd)
    return (loaded[0], [str(argument) for argument in json.loads(orders)]) if orders else None


def _until_readable(wanted: int, *ends: int) -> bool:
    """Wait for ``wanted``; false when one of ``ends`` closes first."""
    poll = select.poll()  # select(2) knows no descriptor above 1023
    for fd in (wanted, *ends):
        poll.register(fd, select.POLLIN)
    return not {fd for fd, _ in poll.poll()}.intersection(ends)


def retitle(before: Sequence[str], after: Sequence[str]) -> None:
    """Put ``after`` where ``before`` ends this process's command line, as far as there is room: what ``ps`` shows.

    For people and monitoring only; where the system does not let us, the old words stay.
    """
    try:
        with open("/proc/self/stat", "rb") as stat:
            start = int(stat.read().rpartition(b")")[2].split()[_ARG_START])
        with open("/proc/self/mem", "r+b", buffering=0) as memory, open("/proc/self/cmdline", "rb") as cmdline:
            line = cmdline.read()
            old = _words(before)
            memory.seek(start)
            if not old or not line.endswith(old) or memory.read(len(line)) != line:
                return
            new = line[: -len(old)]
            for word in after:
                if len(new) + len(os.fsencode(word)) >= len(line):
                    break
                new += _words((word,))
            memory.seek(start)
            memory.write(new.ljust(len(line), b"\0"))
    except (OSError, ValueError, IndexError):
        return


def _words(arguments: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(argument) + b"\0" for argument in arguments)
