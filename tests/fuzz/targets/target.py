"""What a target is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """``run`` raises on any input that shows a defect.

    ``seeds`` are whole inputs, first the usual ones, then what once found something; ``pieces`` are what mutations put
    in. ``longest`` is the size in bytes that an input may grow to.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    pieces: tuple[bytes, ...]
    longest: int = 1024
