"""Exceptions that no code of patgate was prepared for, wherever Python or an event loop finds them.

Each is one log line of level error, ``defect``, and one count of ``patgate_defects_total``. Python's own ways of
reporting them write whole tracebacks to standard error, as often as a client causes them and with what it sent in them;
these lines are redacted and bounded like every other (``logs``).

Rules of this module:
1. Every event loop of a serving process has ``install``; every serving process calls ``hook_process`` once.
2. A task that nobody awaits belongs to an object that ends it, and has ``noted`` as a callback: a failure is reported
   when it happens, and not when the garbage collector finds the task, which may be never.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, Final

from proxy.observe.logs import get_logger
from proxy.observe.metrics import DEFECTS
from proxy.observe.snapshot import Snapshot

_FRAMES: Final = 8
"""Innermost calls that a line names."""

_log = get_logger("defects")
_lock = threading.Lock()
_count = 0


def snapshot() -> Snapshot:
    """How many there were in this process."""
    return Snapshot(counters={DEFECTS.name: {(): float(_count)}}) if _count else Snapshot()


def report(what: str, error: BaseException | None, **fields: object) -> None:
    """Count and log one. ``what`` says where it was found."""
    global _count
    with _lock:
        _count += 1
    if error is not None:
        fields |= {"exception": f"{type(error).__name__}: {error}", "calls": _calls(error.__traceback__)}
    _log.error("defect", what=what, **fields)


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Have the exceptions that reach ``loop`` reported."""
    loop.set_exception_handler(_reached_loop)


def noted(task: asyncio.Task[Any]) -> None:
    """A task has ended that nobody awaits: report its failure."""
    if not task.cancelled() and (error := task.exception()) is not None:
        report("a task failed", error, task=task.get_name())


def hook_process() -> None:
    """Have exceptions that end a thread or this process, or that Python cannot raise, reported; and warnings logged."""
    logging.captureWarnings(True)
    sys.excepthook = _ended_process
    sys.unraisablehook = _not_raised
    threading.excepthook = _ended_thread


def _reached_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    del loop
    error = context.get("exception")
    if isinstance(error, OSError) and ("transport" in context or "protocol" in context):
        # The network broke a connection, whose protocol is told so; uvloop says it here as well.
        return
    task = context.get("task") or context.get("future")
    name = task.get_name() if isinstance(task, asyncio.Task) else None
    named: dict[str, object] = {} if name is None else {"task": name}
    report(str(context.get("message", "")), error if isinstance(error, BaseException) else None, **named)


def _ended_process(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    report("the process ends", error)


def _not_raised(unraisable: sys.UnraisableHookArgs) -> None:
    report(unraisable.err_msg or "an exception could not be raised", unraisable.exc_value)


def _ended_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_type is not SystemExit:
        name = None if ended.thread is None else ended.thread.name
        report("a thread ended", ended.exc_value, thread=name)


def _calls(trace: TracebackType | None) -> list[str]:
    """The innermost calls, the last of them first."""
    found = [(frame.f_code, line) for frame, line in traceback.walk_tb(trace)][-_FRAMES:]
    return [f"{code.co_qualname} ({code.co_filename.rpartition('/')[2]}:{line})" for code, line in reversed(found)]
