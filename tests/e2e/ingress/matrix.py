"""The rows of the suite, and the matrix of docs/ingress.md that a run of the suite writes (``make ingress``).

Every test of tests/e2e/ingress belongs to a row (``@pytest.mark.row``) and runs with every ingress. A cell is ``yes``
if all tests of its row passed with that ingress. A number refers to a note about what is different for this ingress;
the tests assert the difference.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from tests.support.gateway import ROOT
from tests.support.ingress import INGRESSES

PAGE: Final = ROOT / "docs" / "ingress.md"
BEGIN: Final = "<!-- matrix: `make ingress` writes this from a run of tests/e2e/ingress -->\n"
END: Final = "<!-- end of the matrix -->\n"
YES: Final = "yes"
FAILED: Final = "**failed**"


TITLES: Final = {"envoy-grpc": "envoy over gRPC"}
"""Column heads that are not the ingress's name."""


class Row(StrEnum):
    """A promise that the suite proves for every ingress."""

    ALLOWED = "an allowed request arrives once, with patgate's identity and without the credential"
    REFUSED = "every refusal has patgate's own status, challenges and problem document"
    STALE = "a lowered role or a revoked token is refused on a connection that stays open"
    IDENTITY = "identity headers of a client, in any case, with `_`, `.` or other characters, and repeated"
    NOMINATED = "a header that `Connection` names, from `Connection: X-Auth-Role` to `TE` and `Upgrade`"
    TRAILERS = "no trailer reaches the application"
    CLAIMS = "[claims](backends.md#what-you-may-rely-on) of a client, in every spelling; other headers pass"
    FORGED = "a forged target, method or host in a header changes nothing"
    ABSOLUTE = "a URL as the target: its host counts, another `Host` does not"
    HOSTS = "routes by `host`; HTTP/1.0; no `Host` at all"
    PATHS = "the path that is judged is the path that arrives; others are refused"
    QUERIES = "the query arrives as it was sent and decides nothing"
    MISPLACED = "a token in a wrong place, and a second target (`Destination`), are seen by patgate"
    PLACES = "a token in a header or scheme of the operator's own, with the line that this page adds, stays behind"
    UPLOADS = "100 MB with a length and in chunks arrive whole; the verdict does not wait for a body"
    EXPECT = "`Expect: 100-continue`: a refused body is never the next request"
    WEBSOCKETS = "WebSockets, and no other upgrade"
    EVENTS = "an event reaches the client before the next one is sent"
    HEAD = "`HEAD` is judged like `GET`, and its refusal has no body"
    PREFLIGHT = "a preflight gets the verdict of its route"
    STATUSES = "401, 302 and 500 of the application pass unchanged"
    HTTP2 = "clients with HTTP/2, their trailers, nominations and another `host`"
    LONG = "the identity of a token with 110 scopes"
    MANY = "90 headers pass; more than a hundred are refused"
    DOWN = "patgate down: 503 with `Retry-After` within 2 s"
    FROZEN = "patgate frozen: 503 within 2 s"
    AUTHORITY = "its authority frozen: 503 within 2 s"
    RESTARTED = "patgate restarted: 503 in between, then verdicts again, and never a wrong one"
    UNTRUSTED = "an ingress that is not in `trusted`: 403"
    CORRUPTED = "each header of the call to patgate deleted, emptied or corrupted: nothing more is allowed"
    PRESETS = "header names of another identity preset"


_BY_NAME: Final = (
    "nginx and Traefik have no patterns for header names: of a family in that list (`X-Accel-*`) the file removes the "
    "known members."
)

NOTES: Final[Mapping[tuple[Row, str], tuple[str, str]]] = {
    (Row.CLAIMS, "nginx"): (YES, _BY_NAME),
    (Row.CLAIMS, "traefik"): (YES, _BY_NAME),
    (Row.PATHS, "traefik"): (
        YES,
        "Traefik decodes and cleans a path before it asks (`%41`, `/./`, `//`): patgate judges the result, and the "
        "application gets the same result.",
    ),
    (Row.QUERIES, "traefik"): (YES, "A `;` in a query becomes `%3B`, for patgate and for the application."),
    (Row.DOWN, "traefik"): ("502", "With a page of Traefik, and without `Retry-After`; within 2 s."),
    (Row.FROZEN, "traefik"): ("504", "With a page of Traefik; within 2 s."),
    (Row.TRAILERS, "haproxy"): (
        "**no**",
        "HAProxy 2.6 forwards trailers, and its file cannot prevent it. HAProxy 3.2 and newer have "
        "`option http-drop-request-trailers`. Trailers are not headers: servers keep them apart or ignore them. Do not "
        "put a server behind HAProxy 2.6 that merges them into the headers.",
    ),
    (Row.HTTP2, "haproxy"): ("all but trailers", "As in the row about trailers."),
}
"""Where an ingress differs: the cell, and the note about it. The tests of the row assert the difference."""

_TEXTS: Final = tuple(dict.fromkeys(note for _, note in NOTES.values()))


def cell(row: Row, ingress: str) -> str:
    """The cell of a row whose tests have passed."""
    if (row, ingress) not in NOTES:
        return YES
    said, note = NOTES[row, ingress]
    return f"{said} [{_TEXTS.index(note) + 1}]"


def table(failed: frozenset[tuple[str, str]] = frozenset()) -> str:
    """The matrix, with the cells of ``failed`` (row, ingress) as failed."""
    titles = [TITLES.get(name, name) for name in INGRESSES]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(INGRESSES) + 1) + "|"]
    for row in Row:
        cells = [FAILED if (row, name) in failed else cell(row, name) for name in INGRESSES]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    notes = [
        line
        for number, note in enumerate(_TEXTS, 1)
        for line in textwrap.wrap(f"{number}. {note}", 120, subsequent_indent="   ", break_on_hyphens=False)
    ]
    return "\n".join([*lines, "", *notes, ""])


def written() -> str:
    """The matrix that the page has now."""
    return PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]


def write(results: Mapping[tuple[str, str], bool]) -> None:
    """Write the matrix of a run: for each (row, ingress), whether all its tests passed."""
    missing = {(row.value, name) for row in Row for name in INGRESSES} - results.keys()
    assert not missing, f"the run had no test for {sorted(missing)}"
    before, begin, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, "docs/ingress.md has no marks for the matrix"
    failed = frozenset(key for key, passed in results.items() if not passed)
    PAGE.write_text(before + BEGIN + table(failed) + END + after, "utf-8")
