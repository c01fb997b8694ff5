"""The entrances of a worker as its settings describe them: what accepts, and what all connections there keep to."""

from __future__ import annotations

import os
import secrets
import socket
import ssl
from collections.abc import Iterable, Sequence
from typing import Final

from proxy.core.identity import IdentityNames, stripped_names
from proxy.core.request.claims import fold
from proxy.gateway.downstream.acceptor import AcceptCounters, Acceptor
from proxy.gateway.downstream.fd_limits import connections, raise_limit
from proxy.gateway.downstream.listener import Listener
from proxy.gateway.phases.parse import HeadParser
from proxy.gateway.pipeline import Decider
from proxy.observe.logs import Logger
from proxy.settings.model import ForwardAuthListener, Limits, ProxyListener, Settings

PROXY: Final = "proxy"
FORWARD_AUTH: Final = "forward_auth"

_ANSWER_SECONDS: Final = 60.0
"""How long a client may leave an answer unread, and what an exchange has that waits for nobody else."""


def listener(name: str, pipeline: Decider, names: IdentityNames, settings: Settings, *, pseudonym: bytes) -> Listener:
    """What the connections of the listener called ``name`` share; ``pseudonym`` is what the proxy calls itself in
    ``Via``.
    """
    own, limits, timeouts = _own(name, settings), limits_of(name, settings), settings.timeouts
    return Listener(
        pipeline=pipeline,
        parser=HeadParser(
            stripped=stripped_names(names) | folded(settings.headers.dropped),
            search=pipeline.authenticator.search,
            second_targets=folded(settings.headers.second_targets),
            believed=folded(own.trusted_claims) if isinstance(own, ProxyListener) else (),
            # A forward-auth call's headers go on through the ingress: nothing can be dropped here.
            drop_misplaced=name == PROXY and settings.headers.misplaced_tokens == "drop",
            api_key="x-api-key" in settings.credentials,
            max_headers=limits.headers,
            max_request_line=limits.request_line,
            max_body=limits.body,
            pseudonym=pseudonym if name == PROXY else b"",
        ),
        trusted=own.trusted,
        # Eight random bytes tell this process's requests from those of any other.
        boot=secrets.token_hex(8).encode("ascii"),
        max_head=limits.header_bytes,
        max_request_line=limits.request_line,
        max_body=limits.body,
        head_seconds=timeouts.request_head,
        body_idle_seconds=timeouts.request_body_idle,
        keepalive_seconds=timeouts.keepalive,
        answer_seconds=_ANSWER_SECONDS,
        tunnel_seconds=timeouts.tunnel,
        stream_seconds=timeouts.stream,
        client_rate=timeouts.client_rate,
        half_close=isinstance(own, ProxyListener) and own.half_close,
        tls=isinstance(own, ProxyListener) and own.tls is not None,
    )


def folded(names: Iterable[str]) -> frozenset[bytes]:
    """Field names as they are compared."""
    return frozenset(fold(name.encode("ascii")) for name in names)


def acceptor(
    name: str,
    served: Listener,
    fds: Sequence[int],
    settings: Settings,
    context: ssl.SSLContext | None,
    *,
    tally: AcceptCounters,
    log: Logger,
) -> Acceptor:
    """What accepts for ``served`` from the inherited sockets ``fds``, of which it has copies. It is not started."""
    own, files = _own(name, settings), raise_limit()
    room = connections(settings, files)
    limit = room.proxy if name == PROXY else room.forward_auth
    if own.connections is not None and own.connections > limit:
        log.warning(
            "fewer connections than the settings allow, for want of descriptors",
            listener=name,
            setting=own.connections,
            connections=limit,
            descriptors=files,
        )
    return Acceptor(
        served,
        [socket.socket(fileno=os.dup(fd)) for fd in fds],
        name=name,
        limit=limit,
        context=context,
        introduced_by=own.proxy_protocol if isinstance(own, ProxyListener) else (),
        handshake_seconds=settings.timeouts.handshake,
        tally=tally,
        log=log,
    )


def limits_of(name: str, settings: Settings) -> Limits:
    """How large a request at the listener called ``name`` may be."""
    return settings.limits.under(_own(name, settings).limits)


def patience(settings: Settings) -> float:
    """Seconds that the authority may take to tell of a token that forward auth is asked about."""
    return (settings.listen.forward_auth or ForwardAuthListener()).timeout


def _own(name: str, settings: Settings) -> ProxyListener | ForwardAuthListener:
    if name == PROXY:
        return settings.listen.proxy
    # A worker has the pipeline of forward auth where nothing listens for it, too.
    return settings.listen.forward_auth or ForwardAuthListener()
