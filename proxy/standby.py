"""Standby processes ("spares"): load all libraries, then wait to replace a child that dies.

Loading the libraries takes most of a start; a spare has done it before it is needed. Rules:

1. Until it is activated, a spare opens no store, no shared memory page and no socket, and uses none that it inherited.
   It cannot be mistaken for a serving process: it has no link to the authority, counts nothing, and its role on the
   command line ends in ``-spare``.
2. It loads in a thread of low priority. On Linux a nice value belongs to a thread (sched(7)) and cannot be lowered
   without privilege; the thread that will serve must keep the normal one.
3. It ends when the other end of its lifeline, or of the pipe for its new command line, closes; only the supervisor
   holds these.
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
"""Index of ``arg_start`` in /proc/self/stat after the command's name (proc(5), field 48)."""


def stand_by(load: Callable[[], T], *, orders_fd: int, lifeline_fd: int, ready_fd: int) -> tuple[T, list[str]] | None:
    """Load, report it and wait; returns the result of ``load`` and the new arguments, or ``None`` to end.

    ``load`` runs once, in another thread; its exception is raised here.
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
        # The main thread reports this to the supervisor, which activates no spare before.
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
    """Wait for ``wanted``; false if one of ``ends`` closes first."""
    poll = select.poll()  # select(2) supports no descriptor above 1023
    for fd in (wanted, *ends):
        poll.register(fd, select.POLLIN)
    return not {fd for fd, _ in poll.poll()}.intersection(ends)


def retitle(before: Sequence[str], after: Sequence[str]) -> None:
    """Replace ``before`` at the end of this process's command line, as ``ps`` shows it, by ``after`` as far as it fits.

    For people and monitoring only; if the system does not allow it, the command line stays unchanged.
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
