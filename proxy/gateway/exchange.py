"""One request and its response, from the first byte of the head to the record.

An ``Exchange`` exists from the arrival of a complete head until it has been recorded. Each slot is written once, by
the phase named beside it; later phases only read it. The exceptions are the slots under "progress", which change while
bytes flow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.core.credential_places import PresentedFields
    from proxy.core.reasons import Reason
    from proxy.core.request.cors import CorsRequest
    from proxy.core.request.requirement import Requirement
    from proxy.core.request.second_targets import NamedTarget
    from proxy.core.routes import Match
    from proxy.gateway.downstream.connection import ClientConnection
    from proxy.gateway.grants.cache import CacheEntry
    from proxy.gateway.http1.body import BodyReader
    from proxy.gateway.upstream.pool import Server, UpstreamConnection, UpstreamPool

NO_BODY: Final = -1
"""``Exchange.content_length`` of a message without the field."""


class Exchange:
    """The state of one request. Times are nanoseconds of CLOCK_BOOTTIME."""

    __slots__ = (
        "answered",
        "authorization",
        "body",
        "body_done",
        "bounded",
        "bytes_in",
        "bytes_out",
        "chunked",
        "client",
        "content_length",
        "cors",
        "entry",
        "epoch",
        "expects_continue",
        "forwarded",
        "head_only",
        "host",
        "host_name",
        "keep_alive",
        "kept",
        "match",
        "method",
        "misplaced",
        "path",
        "pending_body",
        "presented",
        "query",
        "reason",
        "refused_second",
        "reported",
        "request_id",
        "requirement",
        "response_started",
        "retried",
        "second",
        "server",
        "started",
        "status",
        "stream",
        "tunnel",
        "upstream",
        "upstream_connection",
        "upstream_head",
        "version",
        "websocket",
    )

    def __init__(self, client: ClientConnection | None, started: int, request_id: bytes) -> None:
        # listen
        self.client = client
        self.started = started
        self.request_id = request_id
        # parse
        self.method = b""
        self.path = b""
        self.query = b""
        self.version = 1
        self.head_only = False
        self.host = b""
        self.host_name = ""
        self.kept: bytes = b""
        self.authorization: bytes | None = None
        self.presented: PresentedFields | None = None
        self.cors: CorsRequest | None = None
        self.content_length = NO_BODY
        self.chunked = False
        self.keep_alive = True
        self.expects_continue = False
        self.websocket = False
        self.forwarded: list[tuple[bytes, bytes]] | None = None
        self.misplaced = False
        self.second: list[tuple[bytes, bytes]] | None = None
        self.body: BodyReader | None = None
        # forward auth, where the ingress asks about another request
        self.bounded: bool | None = None
        """Whether this ingress understands only the statuses 2xx, 401 and 403; None before the call has been read."""
        self.requirement: Requirement | None = None
        # route
        self.match: Match | None = None
        # authenticate
        self.epoch = 0
        self.entry: CacheEntry | None = None
        # authorise (or whichever phase refused)
        self.reason: Reason | None = None
        self.reported: Reason | None = None
        self.refused_second: tuple[Reason, bytes, NamedTarget | None] | None = None
        """Why a second target was refused or reported, the field that names it, and the target that was judged, if any.
        The exchange may end for another reason.
        """
        # forward
        self.upstream: UpstreamPool | None = None
        self.server: Server | None = None
        self.upstream_connection: UpstreamConnection | None = None
        self.upstream_head = b""
        # progress
        self.pending_body: list[bytes] | None = None
        self.body_done = True
        self.response_started = False
        self.stream = False
        self.tunnel = False
        self.retried = False
        self.status = 0
        self.answered = 0
        self.bytes_in = 0
        self.bytes_out = 0


def end_after(x: Exchange, head: bytes) -> None:
    """Close the connection after the refusal of ``head``, and send no body if it is a HEAD (RFC 9110 section 9.3.2).

    This includes every malformed head that begins with HEAD: its client would read a body as the next response.
    """
    x.keep_alive = False
    if head.startswith(b"HEAD "):
        x.method, x.head_only = b"HEAD", True
