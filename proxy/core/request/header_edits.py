"""Header edits: the fields that patgate sets or removes in requests for one upstream.

Rules of this module:
1. Names are compared folded (``claims.fold``): a field that is set replaces the client's in every spelling, so that no
   client can add to it, and a field that is removed is removed in every spelling.
2. The lines may hold the backend's own credential, so they have no ``repr``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from proxy.core.request.claims import fold


class HeaderEdits:
    """The edits of one upstream: ``fields`` are set, in this order; the fields in ``removed`` are removed."""

    __slots__ = ("_dropped", "lines")

    def __init__(self, fields: Iterable[tuple[str, str]], removed: Iterable[str]) -> None:
        given = tuple(fields)
        names = (*(name for name, _ in given), *removed)
        self._dropped: Final = frozenset([fold(name.encode("ascii")) for name in names])
        self.lines: Final = "".join([f"{name}: {value}\r\n" for name, value in given]).encode("ascii")

    def kept(self, lines: bytes) -> bytes:
        """Field lines, each after a CRLF, without those that are set or removed here."""
        dropped = self._dropped
        kept = [line for line in lines.split(b"\r\n") if fold(line.partition(b":")[0]) not in dropped]
        return b"\r\n".join(kept)
