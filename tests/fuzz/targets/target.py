"""The definition of a fuzz target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A fuzz target; ``run`` raises on any input that shows a defect.

    ``seeds`` are whole inputs, first typical ones, then those of earlier findings; mutations insert ``pieces``.
    ``longest`` is the maximum size of an input in bytes.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    pieces: tuple[bytes, ...]
    longest: int = 1024
