"""The test's side of the line to a program in the backends' environment; tests/backends/line.py has the protocol."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.support.gateway import ROOT
from tests.support.process import HANGS_SECONDS, Process, wait_until

PYTHON = ROOT / ".venv-backends" / "bin" / "python"


class Raised(Exception):
    """The library that the program uses raised: class name, message, and the response that came with it."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.kind = str(described["kind"])
        self.status: int | None = described["status"]
        self.headers: dict[str, str] = described["headers"]
        super().__init__(f"{self.kind}: {described['text']}")


class Remote:
    """A running program ``tests.backends.NAME``; a context manager.

    ``ask`` waits for an answer and ``begin`` returns a function that does; ``events`` is what has been read of its
    reports, which may be less than it has written.
    """

    def __init__(self, name: str, directory: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = Process(
                [str(PYTHON), "-m", f"tests.backends.{name}", str(theirs.fileno())],
                name=name,
                directory=directory,
                environ={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
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
        """Close the line and wait until the program ends."""
        # A program ends when its test closes the line, even in the middle of its work.
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with suppress(AssertionError):
            self.process.wait(5.0)
        self.process.end()
        self._listener.join()
        self._sock.close()

    def begin(self, verb: str, **arguments: Any) -> Callable[..., Any]:
        """Send a request and return a function that waits ``seconds`` for the answer.

        It raises ``Raised`` if the library did.
        """
        self._asked += 1
        number = self._asked
        self._sock.sendall(json.dumps({"ask": number, "verb": verb, "with": arguments}).encode() + b"\n")

        def result(seconds: float = HANGS_SECONDS) -> Any:
            wait_until(lambda: number in self._answers, f"the answer to {verb}", seconds=seconds, process=self.process)
            answer = self._answers.pop(number)
            if "raised" in answer:
                raise Raised(answer["raised"])
            return answer["answer"]

        return result

    def ask(self, verb: str, **arguments: Any) -> Any:
        return self.begin(verb, **arguments)()

    def told(self, event: str, **facts: Any) -> list[dict[str, Any]]:
        """The events with that name and those facts that it has reported by now, oldest first."""
        self.ask("sync")
        return self._read(event, facts)

    def hears(self, event: str, *, seconds: float = HANGS_SECONDS, **facts: Any) -> dict[str, Any]:
        """Wait for the first such event and return it."""
        return wait_until(
            lambda: next(iter(self._read(event, facts)), None),
            f"{event} {facts}",
            seconds=seconds,
            process=self.process,
        )

    def _read(self, event: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
        wanted = {"event": event} | facts
        return [told for told in tuple(self.events) if wanted.items() <= told.items()]

    def _listen(self) -> None:
        with self._sock.makefile("rb") as lines:
            for line in lines:
                document = json.loads(line)
                if "event" in document:
                    self.events.append(document)
                else:
                    self._answers[document["ask"]] = document


def running(program: str) -> Any:
    """A fixture: the program, which runs while the tests of a module do."""

    @pytest.fixture(scope="module")
    def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
        with Remote(program, tmp_path_factory.mktemp(program)) as started:
            yield started

    return remote


def seconds_until(event: dict[str, Any], since: float) -> float:
    """The seconds from ``since``, a ``time.monotonic`` value, to an event in a program."""
    return float(event["at"]) - since
