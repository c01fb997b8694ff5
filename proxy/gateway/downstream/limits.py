"""What the clients of one listener may send, and how long they may take for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_SECOND_NS: Final = 1_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class DownstreamLimits:
    """The limits of one listener. Sizes are bytes, times are nanoseconds."""

    max_head: int
    """Longest head, with its empty line."""
    max_request_line: int
    """Longest request line, without its CRLF."""
    max_body: int | None
    """Longest body of a request; None is any."""
    handshake_ns: int
    """For a PROXY header, and for a TLS handshake."""
    head_ns: int
    """For a head, from its first byte."""
    body_idle_ns: int
    """Between two parts of a body."""
    keepalive_ns: int
    """Between two requests."""
    answer_ns: int
    """For an exchange that waits for neither body nor backend, and for an answer that the client does not read."""
    tunnel_ns: int
    """Silence of both ends of a tunnel."""
    stream_ns: int
    """Silence of an event stream."""
    client_rate: int
    """Bytes a second that a client must send of a body, or read of an answer, on average; 0 is any."""
    half_close: bool
    """Whether a client that ends its sending side after its request waits for the answer (docs/decisions/0009)."""


def nanoseconds(seconds: float) -> int:
    """``seconds`` as the limits count them."""
    return int(seconds * _SECOND_NS)
