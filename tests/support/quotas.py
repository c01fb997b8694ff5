"""What refused requests leave behind, of which the access log and the audit log have only so much in a time.

A test must not depend on what earlier tests have used up, nor on how fast the machine is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from tests.support.gateway import Patgate
from tests.support.process import HANGS_SECONDS, wait_until
from tests.support.rawhttp import Response

EVENT_SECONDS = 6.0
"""How long a refusal's event takes on most machines. ``recorded`` asks again afterwards, and still takes the first."""


def recorded(node: Patgate, ask: Callable[[], Response]) -> tuple[Response, dict[str, Any]]:
    """A refusal that ``ask`` gets, and its event in the audit log.

    Between two sweeps only a few refusals have an event, and earlier tests may have used them up: then it asks again.
    """
    refusals: dict[str, Response] = {}
    with node.control_socket() as control:

        def found() -> tuple[Response, dict[str, Any]] | None:
            for decision, refusal in refusals.items():
                if events := control.call("GET", f"/audit?request={decision}")["items"]:
                    (event,) = events
                    return refusal, event
            return None

        for _ in range(int(HANGS_SECONDS / EVENT_SECONDS)):
            refusal = ask()
            refusals[str(refusal.json()["decision"])] = refusal
            with suppress(AssertionError):
                return wait_until(found, "the event of a refusal", seconds=EVENT_SECONDS, process=node.process)
    raise AssertionError(f"none of {len(refusals)} refusals has an event in the audit log\n{node.process.tail()}")


def logged(node: Patgate, ask: Callable[[], Response]) -> Response:
    """A refusal that ``ask`` gets and the access log has a line of.

    Between two sweeps it has only a few lines of refusals, and counts the others: then this asks again.
    """
    deadline = time.monotonic() + HANGS_SECONDS
    while time.monotonic() < deadline:
        omitted = left_out(node)
        refusal = ask()
        decision = str(refusal.json()["decision"])
        wait_until(partial(_logged_or_omitted, node, decision, omitted), "the line of a refusal", process=node.process)
        if decision in node.log:
            return refusal
    raise AssertionError(f"no refusal is logged\n{node.process.tail()}")


def _logged_or_omitted(node: Patgate, decision: str, omitted: int) -> bool:
    return decision in node.log or left_out(node) > omitted


def left_out(node: Patgate) -> int:
    """The number of requests that the access log has left out and counted."""
    return sum(int(record["count"]) for record in node.records() if record["event"] == "requests not logged")


def flood(node: Patgate, refused: Callable[[], None], *, at_once: int) -> None:
    """Call ``refused`` until its lines, with status 400, exceed what the access log may write; each has to be counted.

    More are available all the time: on a slow machine ``at_once`` calls may not be enough.
    """

    def lines() -> int:
        return sum(record["event"] == "request" and record["status"] == 400 for record in node.records())

    begun, omitted, deadline = lines() + left_out(node), left_out(node), time.monotonic() + HANGS_SECONDS
    while left_out(node) == omitted:
        assert time.monotonic() < deadline, "the access log has a line for each request"
        for _ in range(at_once):
            refused()
        begun += at_once
        wait_until(partial(_at_least, lines, node, begun), "a line or a count for each", process=node.process)


def _at_least(lines: Callable[[], int], node: Patgate, sent: int) -> bool:
    return lines() + left_out(node) >= sent
