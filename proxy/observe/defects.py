"""Reporting unexpected exceptions (defects) of tasks, threads, event loops and the process.

Each is logged as one line ``defect`` of level error and counted in ``patgate_defects_total``. Python's default hooks
write whole tracebacks, client input included, to standard error, as often as a client causes them; these lines are
redacted and bounded like all others (``logs``).

Rules of this module:
1. Call ``install`` for every event loop of a serving process, and ``hook_process`` once in every serving process.
2. A task that is not awaited belongs to an object that ends it, and has ``noted`` as a callback, so that a failure is
   reported when it happens. Without it, the report would wait for the garbage collector, perhaps for ever.
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
"""Innermost calls in a log line."""

_log = get_logger("defects")
_lock = threading.Lock()
_count = 0


def snapshot() -> Snapshot:
    """The number of defects in this process, as a snapshot."""
    return Snapshot(counters={DEFECTS.name: {(): float(_count)}}) if _count else Snapshot()


def report(what: str, error: BaseException | None, **fields: object) -> None:
    """Count and log one defect; ``what`` says where it was caught."""
    global _count
    with _lock:
        _count += 1
    if error is not None:
        fields |= {"exception": f"{type(error).__name__}: {error}", "calls": _calls(error.__traceback__)}
    _log.error("defect", what=what, **fields)


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Report the exceptions that reach ``loop``."""
    loop.set_exception_handler(_reached_loop)


def noted(task: asyncio.Task[Any]) -> None:
    """Report the failure of a task that is not awaited; a callback for its end."""
    if not task.cancelled() and (error := task.exception()) is not None:
        report("a task failed", error, task=task.get_name())


def hook_process() -> None:
    """Report exceptions that end a thread or this process or that Python cannot raise, and log warnings."""
    logging.captureWarnings(True)
    sys.excepthook = _ended_process
    sys.unraisablehook = _not_raised
    threading.excepthook = _ended_thread


def _reached_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    del loop
    error = context.get("exception")
    if isinstance(error, OSError) and ("transport" in context or "protocol" in context):
        # The network broke a connection. Its protocol learns that from the transport; uvloop reports it here as well.
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
    """The innermost calls, the innermost one first."""
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(trace)][-_FRAMES:]
    return [f"{code.co_qualname} ({code.co_filename.rpartition('/')[2]}:{line})" for code, line in reversed(frames)]
