"""The end of a worker: nothing new is accepted, what has begun ends, WebSockets are told, and at last all is cut.

Rules of this module:
1. A request that had arrived when the drain began is answered, on a connection that the answer closes. An idle
   connection is closed without a word, and whatever arrives on it later is not begun.
2. Both ends of a WebSocket are told with 1001, where a frame ends (RFC 6455 section 7.4.1), and may close in peace.
3. What is left at the deadline is reset: it never looks whole.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from proxy.gateway.process.reload import Running

_ARRIVED_SECONDS: Final = 0.05
"""Time in which what has arrived is accepted and read, several turns of the event loop."""
_FAREWELL_SECONDS: Final = 2.0
"""How long the ends of a WebSocket have to answer a Close."""
_LOOK_SECONDS: Final = 0.25
_CUT_SECONDS: Final = 0.5
"""How long what was reset may take to be recorded."""


async def drain(running: Running, cut_off: asyncio.Event) -> None:
    """Let what is under way end, for at most ``timeouts.drain`` or until ``cut_off``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + running.settings.timeouts.drain
    ports = [*running.ports.values(), *running.leaving]
    for port in ports:
        port.listener.leave()
    await asyncio.sleep(_ARRIVED_SECONDS)
    for port in ports:
        port.give_back()
        port.listener.drain()
    farewell = loop.time() + _FAREWELL_SECONDS
    ended = asyncio.create_task(_all_ended(running), name="drain")
    told_off = asyncio.create_task(cut_off.wait(), name="cut off")
    try:
        while (now := loop.time()) < deadline:
            wait = min(_LOOK_SECONDS, deadline - now)
            done, _ = await asyncio.wait((ended, told_off), timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if done:
                break
            if now > farewell:
                for port in ports:
                    port.listener.hang_up()
    finally:
        for task in (ended, told_off):
            task.cancel()
        await asyncio.gather(ended, told_off, return_exceptions=True)
    for port in ports:
        for connection in list(port.listener.connections):
            connection.abort()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CUT_SECONDS):
            await _all_ended(running)


async def _all_ended(running: Running) -> None:
    for port in (*running.ports.values(), *running.leaving):
        await port.listener.empty.wait()
