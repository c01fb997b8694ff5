"""Compares the rows of two tables without having both in memory, in whatever order they come."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

_SIZE: Final = 2**256


@dataclass(slots=True)
class Fingerprint:
    """Number and sum of the hashes of rows: equal for equal rows, regardless of their order.

    It finds what was lost or altered by accident. It is no proof against somebody who chooses the rows.
    """

    rows: int = 0
    sum: int = 0

    def add(self, rows: Iterable[Iterable[Any]]) -> None:
        """Add rows. Values are told apart by type, and floats to the last bit."""
        for row in rows:
            digest = hashlib.sha256(repr(tuple(row)).encode("utf-8", "surrogatepass")).digest()
            self.sum = (self.sum + int.from_bytes(digest)) % _SIZE
            self.rows += 1
