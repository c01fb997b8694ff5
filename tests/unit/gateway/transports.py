"""A transport without a network, which keeps what is written."""

from __future__ import annotations

import asyncio


class Transport(asyncio.Transport):
    """Keeps what is written in ``written``."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data
