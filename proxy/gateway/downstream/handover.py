"""Giving an accepted connection to the event loop, without a task (docs/decisions/0020)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from proxy.observe import defects


class Handover:
    """Runs a coroutine of the event loop that waits for one future: ``loop.connect_accepted_socket``.

    It begins at once and not in the next turn of the loop, and costs a third of a task. ``ended`` is called when the
    coroutine has ended, with its OSError or None; any other error is a defect.
    """

    __slots__ = ("_ended", "_run", "_waiter")

    def __init__(self, run: Coroutine[Any, Any, object], ended: Callable[[Handover, OSError | None], None]) -> None:
        self._run = run
        self._ended = ended
        self._waiter: asyncio.Future[Any] | None = None

    def advance(self, _: object = None) -> None:
        """Run the coroutine until it waits, or to its end."""
        error: OSError | None = None
        try:
            waiter = self._run.send(None)
        except StopIteration:
            pass
        except asyncio.CancelledError:
            pass
        except OSError as refused:
            error = refused
        except Exception as defect:  # noqa: BLE001 - nobody awaits it, so that it is reported here
            defects.report("a connection was not taken over", defect)
        else:
            self._waiter = waiter
            waiter.add_done_callback(self.advance)
            return
        self._waiter = None
        self._ended(self, error)

    def cancel(self) -> None:
        """Close the connection, unless it has been taken over."""
        if self._waiter is not None:
            self._waiter.cancel()
