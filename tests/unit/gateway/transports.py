"""A transport without a network that records written data."""

from __future__ import annotations

import asyncio


class Transport(asyncio.Transport):
    """Records written data in ``written``."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data
