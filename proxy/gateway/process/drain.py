"""Draining a worker: accepts nothing new, lets exchanges end, sends WebSockets a Close, and finally resets the rest.

Rules of this module:
1. A request that had arrived when the drain began is answered, and its connection is closed after the answer. An idle
   connection is closed without an answer, and requests that arrive on it later are not started.
2. Both ends of a WebSocket get a Close with code 1001 at a frame boundary (RFC 6455 section 7.4.1), and time to close.
3. Connections that are left at the deadline are reset: their answers never look complete.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from proxy.gateway.process.reload import Running

_ARRIVED_SECONDS: Final = 0.05
"""Time to accept connections and read requests that have arrived: several turns of the event loop."""
_CLOSE_SECONDS: Final = 2.0
"""How long the ends of a WebSocket have to answer a Close."""
_CHECK_SECONDS: Final = 0.25
_CUT_SECONDS: Final = 0.5
"""How long the records of reset exchanges may take."""


async def drain(running: Running, cut_off: asyncio.Event) -> None:
    """Let exchanges end, for at most ``timeouts.drain`` or until ``cut_off``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + running.settings.timeouts.drain
    ports = [*running.ports.values(), *running.leaving]
    for port in ports:
        port.listener.leave()
    await asyncio.sleep(_ARRIVED_SECONDS)
    for port in ports:
        port.give_back()
        port.listener.drain()
    close_deadline = loop.time() + _CLOSE_SECONDS
    ended = asyncio.create_task(_all_ended(running), name="drain")
    cut = asyncio.create_task(cut_off.wait(), name="cut off")
    try:
        while (now := loop.time()) < deadline:
            wait = min(_CHECK_SECONDS, deadline - now)
            done, _ = await asyncio.wait((ended, cut), timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if done:
                break
            if now > close_deadline:
                for port in ports:
                    port.listener.hang_up()
    finally:
        for task in (ended, cut):
            task.cancel()
        await asyncio.gather(ended, cut, return_exceptions=True)
    for port in ports:
        for connection in list(port.listener.connections):
            connection.abort()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CUT_SECONDS):
            await _all_ended(running)


async def _all_ended(running: Running) -> None:
    for port in (*running.ports.values(), *running.leaving):
        await port.listener.empty.wait()
