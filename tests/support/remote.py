"""The test's end of the line to a program in the backends' environment; tests/backends/line.py says what passes."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.gateway import ROOT
from tests.support.process import Process, wait_until

PYTHON = ROOT / ".venv-backends" / "bin" / "python"


class Raised(Exception):
    """The library under the program raised: the name of its class, its words, and the response that it came with."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.kind = str(described["kind"])
        self.status: int | None = described["status"]
        self.headers: dict[str, str] = described["headers"]
        super().__init__(f"{self.kind}: {described['text']}")


class Remote:
    """A running program ``tests.backends.NAME``; a context manager.

    ``ask`` waits for an answer and ``begin`` gives a function that does; ``events`` is all that it has told so far.
    """

    def __init__(self, name: str, directory: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = Process(
                [str(PYTHON), "-m", f"tests.backends.{name}", str(theirs.fileno())],
                name=name,
                directory=directory,
                environ={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
            )
        self._sock = ours
        self._asked = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self._listener = threading.Thread(target=self._listen, name=name, daemon=True)
        self._listener.start()

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Hang up, and wait for the end of the program."""
        # A program ends when its test hangs up, whatever is going on in it.
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with suppress(AssertionError):
            self.process.wait(5.0)
        self.process.end()
        self._listener.join()
        self._sock.close()

    def begin(self, verb: str, **arguments: Any) -> Callable[..., Any]:
        """Ask; the function waits for the answer, so many ``seconds``, and raises ``Raised`` where the library did."""
        self._asked += 1
        number = self._asked
        self._sock.sendall(json.dumps({"ask": number, "verb": verb, "with": arguments}).encode() + b"\n")

        def result(seconds: float = 30.0) -> Any:
            wait_until(lambda: number in self._answers, f"the answer to {verb}", seconds=seconds, process=self.process)
            answer = self._answers.pop(number)
            if "raised" in answer:
                raise Raised(answer["raised"])
            return answer["answer"]

        return result

    def ask(self, verb: str, **arguments: Any) -> Any:
        return self.begin(verb, **arguments)()

    def told(self, event: str, **facts: Any) -> list[dict[str, Any]]:
        """The events of that name with those facts, oldest first."""
        wanted = {"event": event} | facts
        return [told for told in tuple(self.events) if wanted.items() <= told.items()]

    def hears(self, event: str, *, seconds: float = 30.0, **facts: Any) -> dict[str, Any]:
        """The first such event; waits for it."""
        return wait_until(
            lambda: next(iter(self.told(event, **facts)), None),
            f"{event} {facts}",
            seconds=seconds,
            process=self.process,
        )

    def _listen(self) -> None:
        with self._sock.makefile("rb") as lines:
            for line in lines:
                document = json.loads(line)
                if "event" in document:
                    self.events.append(document)
                else:
                    self._answers[document["ask"]] = document


def seconds_until(event: dict[str, Any], since: float) -> float:
    """How long after ``since``, a moment of ``time.monotonic``, something happened in a program."""
    return float(event["at"]) - since
