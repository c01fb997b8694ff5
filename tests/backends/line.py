"""The line between a test and the program that it controls: one JSON document per line of text, both ways.

The test sends ``{"ask": 1, "verb": "open", "with": {…}}``. The program answers ``{"ask": 1, "answer": …}`` or, if the
library raised, ``{"ask": 1, "raised": {"kind": "InvalidStatus", "text": …, "status": 401, "headers": {…}}}``. It
reports other events as ``{"event": "closed", "at": …, …}``. The verb ``sync`` does nothing: its answer follows all
events that were reported before. Times are seconds of CLOCK_MONOTONIC, which is the same for all processes of the
machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


class Line:
    """The program's end. ``tell`` may be called from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._asked: set[asyncio.Task[None]] = set()

    def tell(self, event: str, **facts: Any) -> None:
        self._send({"event": event, "at": time.monotonic()} | facts)

    async def serve(self, worker: object) -> None:
        """Run each request in its own task with the worker's method ``do_…``, until the test closes the line."""
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()

        def listen() -> None:
            with self._sock.makefile("rb") as lines:
                for line in lines:
                    loop.call_soon_threadsafe(self._begin, worker, json.loads(line))
            loop.call_soon_threadsafe(gone.set)

        threading.Thread(target=listen, name="line", daemon=True).start()
        await gone.wait()

    def _begin(self, worker: object, asked: dict[str, Any]) -> None:
        task = asyncio.create_task(self._answer(worker, asked), name=asked["verb"])
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _answer(self, worker: object, asked: dict[str, Any]) -> None:
        try:
            answer = None
            if asked["verb"] != "sync":
                answer = await getattr(worker, "do_" + asked["verb"])(**asked["with"])
        except Exception as error:  # noqa: BLE001 - the test judges any error that a library raises
            self._send({"ask": asked["ask"], "raised": described(error)})
        else:
            self._send({"ask": asked["ask"], "answer": answer})

    def _send(self, document: dict[str, Any]) -> None:
        with self._sending:
            self._sock.sendall(json.dumps(document).encode() + b"\n")


def described(error: BaseException) -> dict[str, Any]:
    """What a client's user can see of an error: its class, its message, and the response if it carries one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    response = getattr(error, "response", None)
    return {
        "kind": type(error).__name__,
        "text": str(error),
        "status": getattr(response, "status_code", None),
        "headers": {} if response is None else fields(response.headers),
    }


def fields(headers: Any) -> dict[str, str]:
    """The fields of any library's headers; several of one name are joined, as in RFC 9110 section 5.3."""
    pairs = next(getattr(headers, way)() for way in ("raw_items", "multi_items", "items") if hasattr(headers, way))
    found: dict[str, str] = {}
    for name, value in pairs:
        key = str(name).lower()
        found[key] = f"{found[key]}, {value}" if key in found else str(value)
    return found


def work(factory: Callable[[Line], object]) -> None:
    """Run a program: its worker serves the line whose descriptor is the only argument."""

    async def main() -> None:
        line = Line(socket.socket(fileno=int(sys.argv[1])))
        await line.serve(factory(line))
        # The test has closed the line, so open connections need no orderly end.
        os._exit(0)

    asyncio.run(main())
