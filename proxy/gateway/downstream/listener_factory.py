"""Building the listeners and acceptors of a worker from its settings."""

from __future__ import annotations

import os
import secrets
import socket
import ssl
from collections.abc import Iterable, Sequence
from typing import Final

from proxy.core.identity import IdentityOutputs
from proxy.core.request.claims import fold
from proxy.gateway.described_request import DESCRIBING_FIELDS
from proxy.gateway.downstream.acceptor import AcceptCounters, Accepting, Acceptor
from proxy.gateway.downstream.fd_limits import connections, raise_limit
from proxy.gateway.downstream.limits import DownstreamLimits, nanoseconds
from proxy.gateway.downstream.listener import Listener
from proxy.gateway.forward_auth import PeerSecret
from proxy.gateway.phases.parse import INGRESS_FIELDS, HeadParser
from proxy.gateway.pipeline import Decider
from proxy.observe.logs import Logger
from proxy.settings.compile import presented_fields
from proxy.settings.model import Limits, Settings
from proxy.settings.sections.listeners import ForwardAuthListener, ProxyListener
from proxy.settings.sources.shared_secret import read_digests

PROXY: Final = "proxy"
FORWARD_AUTH: Final = "forward_auth"
EXT_AUTHZ: Final = "ext_authz"

_ANSWER_SECONDS: Final = 60.0
"""How long a client may leave an answer unread, and how long an exchange may take that waits for no backend."""


def listener(
    name: str, pipeline: Decider, identity: IdentityOutputs, settings: Settings, *, pseudonym: bytes
) -> Listener:
    """The listener called ``name``; ``pseudonym`` is the name of the proxy in ``Via``."""
    own, limits, secret = _own(name, settings), listener_limits(name, settings), secret_names(settings)
    return Listener(
        pipeline=pipeline,
        parser=HeadParser(
            # The secret of an ingress reaches no backend, also where its calls arrive at the wrong listener.
            stripped=identity.stripped | folded(settings.headers.dropped) | secret,
            search=pipeline.authenticator.search,
            second_targets=folded(settings.headers.second_targets),
            ingress=frozenset(INGRESS_FIELDS) - folded(settings.headers.dropped),
            believed=folded(own.trusted_claims) if isinstance(own, ProxyListener) else (),
            describing=(*DESCRIBING_FIELDS, *secret_names(settings, name)) if name != PROXY else (),
            # The headers of a forward-auth call stay with the ingress: nothing can be dropped here.
            drop_misplaced=name == PROXY and settings.headers.misplaced_tokens == "drop",
            # A WebSocket arrives at the proxy only: an ingress would forward the token with the other subprotocols.
            presented=presented_fields(settings, websocket=name == PROXY),
            cors=pipeline.responder.cors.on,
            max_headers=limits_of(name, settings).headers,
            max_request_line=limits.max_request_line,
            max_body=limits.max_body,
            pseudonym=pseudonym if name == PROXY else b"",
        ),
        trusted=own.trusted,
        limits=limits,
        # Eight random bytes distinguish this process's requests from those of any other.
        boot=secrets.token_hex(8).encode("ascii"),
        tls=own.tls is not None,
        local_trusted=isinstance(own, ForwardAuthListener) and bool(own.bind.path),
    )


def listener_limits(name: str, settings: Settings) -> DownstreamLimits:
    """The limits of the listener called ``name``."""
    own, sizes, timeouts = _own(name, settings), limits_of(name, settings), settings.timeouts
    return DownstreamLimits(
        max_head=sizes.header_bytes,
        max_request_line=sizes.request_line,
        max_body=sizes.body,
        handshake_ns=nanoseconds(timeouts.handshake),
        head_ns=nanoseconds(timeouts.request_head),
        body_idle_ns=nanoseconds(timeouts.request_body_idle),
        keepalive_ns=nanoseconds(timeouts.keepalive),
        answer_ns=nanoseconds(_ANSWER_SECONDS),
        tunnel_ns=nanoseconds(timeouts.tunnel),
        stream_ns=nanoseconds(timeouts.stream),
        client_rate=timeouts.client_rate,
        half_close=isinstance(own, ProxyListener) and own.half_close,
    )


def folded(names: Iterable[str]) -> frozenset[bytes]:
    """Field names in the form in which they are compared."""
    return frozenset(fold(name.encode("ascii")) for name in names)


def acceptor(
    name: str,
    served: Accepting,
    fds: Sequence[int],
    settings: Settings,
    context: ssl.SSLContext | None,
    *,
    tally: AcceptCounters,
    log: Logger,
) -> Acceptor:
    """An acceptor for ``served``, not started, with copies of the inherited sockets ``fds``."""
    own, files = _own(name, settings), raise_limit()
    room = connections(settings, files)
    limit: int = getattr(room, name)
    if own.connections is not None and own.connections > limit:
        log.warning(
            "too few file descriptors: fewer connections than the settings allow",
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
        tally=tally,
        log=log,
    )


def limits_of(name: str, settings: Settings) -> Limits:
    """The limits of request sizes at the listener called ``name``."""
    return settings.limits.under(_own(name, settings).limits)


def patience(name: str, settings: Settings) -> float:
    """Seconds that a call at the listener called ``name`` may wait for the authority."""
    return _for_ingress(name, settings).timeout


def peer_secret(name: str, settings: Settings) -> PeerSecret | None:
    """The secret that calls at the listener called ``name`` must contain. Raises OSError and ValueError."""
    secret = _for_ingress(name, settings).secret
    if secret is None:
        return None
    (header,) = secret_names(settings, name)
    return PeerSecret(header, read_digests(secret.file))


def secret_names(settings: Settings, name: str | None = None) -> frozenset[bytes]:
    """The folded name of the header with the secret of the listener called ``name``; those of all listeners without."""
    listeners = settings.listen.for_ingresses()
    return folded(own.secret.header for each, own in listeners if own.secret is not None and name in (None, each))


def _for_ingress(name: str, settings: Settings) -> ForwardAuthListener:
    # A worker has the pipeline of each listener for ingresses even where it has no such listener.
    return dict(settings.listen.for_ingresses()).get(name) or ForwardAuthListener()


def _own(name: str, settings: Settings) -> ProxyListener | ForwardAuthListener:
    if name == PROXY:
        return settings.listen.proxy
    return _for_ingress(name, settings)
