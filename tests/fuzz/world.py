"""A gateway in memory with a client and backends that record all they receive."""

from __future__ import annotations

import itertools
from typing import Final

from proxy.core.kinds import Kind
from proxy.core.token import Minted, checksum
from tests.fuzz.memory import MemoryLoop, MemoryTransport
from tests.support.sentinel import Sentinel, Violation
from tests.unit.gateway.kit import HOST, IDENTITY, Gateway, make_grant

_BODY: Final = "acme_pat_0123456789Ab_QwErTyUiOpAsDfGhJkLzXcVbNm012345"
TOKEN: Final = _BODY + checksum(_BODY)
USER: Final = "usr1"
MINTED: Final = Minted(token_id="0123456789Ab", prefix="acme_pat_0123456789Ab", token=TOKEN)
PEER: Final = "192.0.2.7"


class Backend:
    """The other end of one upstream connection: parses with the wire sentinel; subclasses answer."""

    def __init__(self, number: int) -> None:
        self.received = b""
        self.sentinel = Sentinel(f"fuzz, connection {number}")
        self.violation: Violation | None = None
        self.ended = False
        self.lost_transport = False

    def got(self, transport: MemoryTransport, data: bytes) -> None:
        self.received += data
        if self.violation is None:
            try:
                self.sentinel.sent(data)
            except Violation as violation:
                self.violation = violation
        self.react(transport)

    def react(self, transport: MemoryTransport) -> None:
        """Handle received bytes."""

    def got_end(self, transport: MemoryTransport) -> None:
        self.ended = True

    def lost(self, transport: MemoryTransport, *, aborted: bool) -> None:
        self.lost_transport = True

    def answer(self, transport: MemoryTransport, data: bytes | None) -> None:
        """Send bytes to the gateway, or (None) end the sending side."""
        if data is not None and self.violation is None:
            self.sentinel.answered(data)
        transport.deliver(data)

    @property
    def messages(self) -> list[bytes]:
        """The complete requests."""
        ends = [0, *self.sentinel.ends]
        return [self.received[a:b] for a, b in itertools.pairwise(ends)]


class Client:
    """The other end of the client's connection."""

    def __init__(self) -> None:
        self.received = b""
        self.ended = False
        self.aborted = False

    def got(self, transport: MemoryTransport, data: bytes) -> None:
        self.received += data

    def got_end(self, transport: MemoryTransport) -> None:
        self.ended = True

    def lost(self, transport: MemoryTransport, *, aborted: bool) -> None:
        self.ended = True
        self.aborted = aborted

    @property
    def open(self) -> bool:
        return not self.ended


def make_gateway() -> Gateway:
    """A gateway that knows ``TOKEN``, refuses no connection and logs every request."""
    gateway = Gateway(1, access="all", max_head=4096, max_headers=30, max_request_line=1024, max_body=4096)
    grant = make_grant(MINTED, kind=Kind.PAT, user=USER, permissions=("*:*",))
    gateway.cache.store(grant, IDENTITY)
    return gateway


def accept(gateway: Gateway, loop: MemoryLoop, client: Client) -> MemoryTransport:
    """A connection of ``client`` to ``gateway``."""
    gateway.listener.arriving += 1
    return loop.connect(gateway.listener.connection(PEER), client)


__all__ = ["HOST", "PEER", "TOKEN", "USER", "Backend", "Client", "accept", "make_gateway"]
