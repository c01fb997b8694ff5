"""The forward-auth entry: answers an ingress that asks whether a request which it describes may pass.

Rules of this module:
1. Only peers in the listener's trusted networks, and those of its unix socket, are served; with a shared secret, only
   calls that contain it. Their description of a request is believed.
2. Each shape reads its own headers and no others. Method and URI must each occur exactly once and be valid.
3. The described target passes the same checks and the same phases as a proxied one.
4. An allowed request gets exactly 200 with every identity header, empty where unknown, so that an ingress overwrites
   what the client sent. Organisation and role are those of the organisation that the described request touches.
5. An ingress does not wait long: an authority that does not answer within ``patience`` seconds is unavailable.

The shapes of calls, by path, are in ``described_request``. A refusal also has its parts in header fields
(``Responder.refusal``), from which an ingress that loses the body, or the status, can build the same response.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from proxy.core.identity import IdentityOutputs
from proxy.core.reasons import Reason
from proxy.core.request.requirement import read_requirement
from proxy.core.routes import RouteTable
from proxy.gateway.backend_identity import BackendIdentity, backend_identity
from proxy.gateway.described_request import (
    SHAPES,
    Fields,
    differs,
    envoys_path,
    is_bounded,
    path_of_head,
    read_call,
    split_requirement,
)
from proxy.gateway.exchange import Exchange
from proxy.gateway.phases.authenticate import Authenticator
from proxy.gateway.phases.record import ExchangeRecorder
from proxy.gateway.phases.respond import Responder
from proxy.gateway.pipeline import Decider


class PeerSecret:
    """A secret that every call must contain, once, in the field ``name`` (folded). ``digests`` are SHA-256."""

    def __init__(self, name: bytes, digests: Sequence[bytes]) -> None:
        self._name = name
        self._digests = tuple(digests)

    def is_in(self, fields: Fields) -> bool:
        """Whether ``fields`` contain the secret; takes the same time for every wrong one."""
        values = [value for name, value in fields if name == self._name]
        if len(values) != 1:
            return False
        given = hashlib.sha256(values[0]).digest()
        right = False
        for digest in self._digests:
            right = hmac.compare_digest(given, digest) or right
        return right


class ForwardAuthPipeline(Decider):
    """Answers an ingress: 200 with the identity headers, or a refusal."""

    def __init__(
        self,
        *,
        routes: RouteTable,
        authenticator: Authenticator,
        responder: Responder,
        recorder: ExchangeRecorder,
        identity: IdentityOutputs,
        max_request_line: int,
        patience: float,
        secret: PeerSecret | None = None,
    ) -> None:
        super().__init__(
            routes=routes, authenticator=authenticator, responder=responder, recorder=recorder, identity=identity
        )
        self.limit(max_request_line, patience, secret)

    def limit(self, max_request_line: int, patience: float, secret: PeerSecret | None) -> None:
        """Set the longest described request line in bytes, the seconds to wait for the authority, and the secret."""
        self._max_request_line = max_request_line
        self.patience = patience
        self._secret = secret

    @property
    def secret(self) -> PeerSecret | None:
        """The secret that every call must contain; None for none."""
        return self._secret

    def begin(self, x: Exchange) -> None:
        """Decide the request that the ingress describes."""
        reason = self._translate(x)
        if reason is None:
            super().begin(x)
        else:
            self.refuse(x, reason)

    def refuse(self, x: Exchange, reason: Reason) -> None:
        """End ``x`` with the response for ``reason``, in a form that the ingress can pass on."""
        if x.bounded is None:
            # The call has not been read: its body was refused before that.
            x.bounded = is_bounded(x.path)
        super().refuse(x, reason)

    def refuse_head(self, x: Exchange, reason: Reason, head: bytes) -> None:
        """End ``x``, whose head cannot be read, in the form for the path that ``head`` begins with."""
        x.bounded = is_bounded(path_of_head(head))
        self.refuse(x, reason)

    def refusal(self, x: Exchange, reason: Reason) -> bytes:
        """The response, with its parts in header fields too."""
        return self.responder.refusal(x, reason, in_fields=True, bounded=x.bounded is True)

    def hosts(self, x: Exchange) -> tuple[bytes, ...]:
        """The described host."""
        return (x.host_name.encode("ascii"),)

    def compares_ports(self) -> bool:
        """Never, because an ingress may omit the port (nginx's ``$host``)."""
        return False

    def answers_preflights(self) -> bool:
        """Never: an ingress takes 204 for an allowance, and would send the preflight to the backend."""
        return False

    def identity_from(self, outputs: IdentityOutputs) -> BackendIdentity:
        """Every header on every route, so that the ingress overwrites the client's (rule 4)."""
        return backend_identity(outputs, on_open_routes=True)

    def allowed(self, x: Exchange) -> None:
        """Answer 200 with the identity headers."""
        client = x.client
        if client is None:
            return
        if not x.body_done:
            x.keep_alive = False
        x.status = 200
        connection = b"" if x.keep_alive else b"Connection: close\r\n"
        if x.keep_alive and not x.version:
            connection = b"Connection: keep-alive\r\n"
        client.respond(
            x,
            b"".join(
                (
                    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nCache-Control: no-store\r\n",
                    self.identity.lines(x),
                    b"X-Request-Id: ",
                    x.request_id,
                    b"\r\n",
                    connection,
                    b"\r\n",
                )
            ),
        )

    def _restart(self, x: Exchange) -> None:
        """Decide ``x`` again, which has waited during a reload: its peer must be one that is served now."""
        reason = self._of_peer(x)
        if reason is None:
            super()._restart(x)
        else:
            self.refuse(x, reason)

    def _of_peer(self, x: Exchange) -> Reason | None:
        """Why the peer that sent ``x`` is not served; None if it is."""
        if x.client is None or not x.client.peer_trusted:
            return Reason.PEER_UNTRUSTED
        secret = self._secret
        return None if secret is None or secret.is_in(x.forwarded or []) else Reason.PEER_SECRET

    def _translate(self, x: Exchange) -> Reason | None:
        """Replace the method, target and host of ``x`` with those that the ingress describes; a refusal or None."""
        text, path = split_requirement(x.path)
        shape = SHAPES.get(path)
        fixed_query = False
        if shape is not None:
            _, x.bounded, fixed_query = shape
        else:
            x.bounded = False
        reason = self._of_peer(x)
        if reason is not None:
            return reason
        original = envoys_path(path) if shape is None else None
        if shape is None and original is None:
            return Reason.FORWARDED_INVALID
        if fixed_query and x.query:
            if text is not None:
                return Reason.REQUIREMENT_INVALID
            text = x.query[1:]
        if text is not None:
            x.requirement = read_requirement(text)
            if x.requirement is None:
                return Reason.REQUIREMENT_INVALID
        if shape is None:
            assert original is not None
            x.path = original
            lies = x.forwarded is not None and differs(x.forwarded, x.path + x.query, x.host_name)
            return Reason.FORWARDED_INVALID if lies else None
        described = read_call(shape, x.forwarded or [], x.host_name, self._max_request_line)
        if isinstance(described, Reason):
            return described
        x.method, x.path, x.query, x.host_name = described
        return None
