"""Generates steady load from threads and records each answer with its time, while the test kills something."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from tests.support.process import HANGS_SECONDS, wait_until
from tests.support.rawhttp import Connection, ConnectionEnded, request_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One attempt: its start and duration (monotonic seconds), and its status; None if there was no answer."""

    began: float
    seconds: float
    status: int | None


class Load:
    """One client that repeats one request, with a pause in seconds between them, until it is stopped.

    With ``reconnects`` it opens a new connection after a failure.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        target: str,
        headers: dict[str, str],
        *,
        reconnects: bool = True,
        pause: float = 0.002,
    ) -> None:
        self._connect = connect
        self._request = request_bytes("GET", target, headers=headers)
        self._reconnects = reconnects
        self._pause = pause
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="load", daemon=True)
        self.answers: list[Answer] = []

    def __enter__(self) -> Load:
        self._thread.start()
        try:
            self.wait_for_more(5)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def wait_for_more(self, count: int, *, status: int = 200, seconds: float = HANGS_SECONDS) -> None:
        """Wait for the given number of further answers with that status."""
        enough = self.count(status) + count
        wait_until(lambda: self.count(status) >= enough, f"{count} more answers of {status}", seconds=seconds)

    def count(self, status: int | None) -> int:
        return sum(answer.status == status for answer in list(self.answers))

    def statuses(self) -> set[int | None]:
        return {answer.status for answer in list(self.answers)}

    def first_success_after(self, moment: float) -> float:
        """The seconds from the moment to the end of the first request begun after it and answered 200."""
        after = [answer for answer in list(self.answers) if answer.began >= moment and answer.status == 200]
        assert after, "no request succeeded afterwards"
        return after[0].began + after[0].seconds - moment

    def _end(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _repeat(self) -> None:
        connection: Connection | None = None
        while not self._stopped.is_set():
            began = time.monotonic()
            status: int | None = None
            try:
                connection = connection or self._connect()
                response = connection.exchange(self._request)
                status = response.status
                if not response.keeps_alive:
                    connection.close()
                    connection = None
            except (OSError, ConnectionEnded):
                if connection is not None:
                    connection.close()
                connection = None
            self.answers.append(Answer(began=began, seconds=time.monotonic() - began, status=status))
            if status is None and not self._reconnects:
                return
            self._stopped.wait(self._pause)  # limits the rate: two cores run everything
        if connection is not None:
            connection.close()
