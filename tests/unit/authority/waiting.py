"""Waiting for a condition with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.support.process import HANGS_SECONDS


async def until(condition: Callable[[], object], *, pause: float = 0.002) -> None:
    """Return once ``condition``, checked every ``pause`` seconds, is true; TimeoutError if it does not become so."""
    async with asyncio.timeout(HANGS_SECONDS):
        while True:
            if condition():
                return
            await asyncio.sleep(pause)
