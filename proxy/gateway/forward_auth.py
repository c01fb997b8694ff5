"""The forward-auth entry: answers an ingress that asks whether a request which it describes may pass.

Rules of this module:
1. Only peers in the listener's trusted networks are served; their description of a request is believed.
2. Each shape reads its own headers and no others. Method and URI must each occur exactly once and be valid.
3. The described target passes the same checks and the same phases as a proxied one.
4. An allowed request gets exactly 200 with every identity header, empty where unknown, so that an ingress overwrites
   what the client sent. Organisation and role are those of the organisation that the described request touches.
5. An ingress does not wait long: an authority that does not answer within ``patience`` seconds is unavailable.

Shapes, by path: ``/nginx`` (X-Original-Method, X-Original-URI), ``/traefik`` and ``/caddy`` (X-Forwarded-Method, -Uri,
-Host), ``/envoy`` as a prefix of the original path (method and Host are the request's own), and ``/``, which takes
whichever of the two families is present.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.core.identity import IdentityOutputs
from proxy.core.reasons import Reason
from proxy.core.request.request_reading import TOKEN, host_name
from proxy.core.routes import RouteTable
from proxy.gateway.backend_identity import BackendIdentity
from proxy.gateway.exchange import Exchange
from proxy.gateway.phases.authenticate import Authenticator
from proxy.gateway.phases.record import ExchangeRecorder
from proxy.gateway.phases.respond import Responder
from proxy.gateway.pipeline import Decider

_ORIGINAL: Final = (b"x-original-method", b"x-original-uri")
_FORWARDED: Final = (b"x-forwarded-method", b"x-forwarded-uri")
_FORWARDED_HOST: Final = b"x-forwarded-host"
_ENVOY: Final = b"/envoy"
_SHAPES: Final = {
    b"/nginx": (_ORIGINAL,),
    b"/traefik": (_FORWARDED,),
    b"/caddy": (_FORWARDED,),
    b"/": (_ORIGINAL, _FORWARDED),
}
_URI: Final = re.compile(rb"(/[\x21-\x3e\x40-\x7e\x80-\xff]*+)(\?[\x21\x22\x24-\x7e]*+)?")


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
    ) -> None:
        super().__init__(
            routes=routes, authenticator=authenticator, responder=responder, recorder=recorder, identity=identity
        )
        self.limit(max_request_line, patience)

    def limit(self, max_request_line: int, patience: float) -> None:
        """Set the longest described request line in bytes, and the seconds to wait for the authority."""
        self._max_request_line = max_request_line
        self.patience = patience

    def begin(self, x: Exchange) -> None:
        """Decide the request that the ingress describes."""
        reason = self._translate(x)
        if reason is None:
            super().begin(x)
        else:
            self.refuse(x, reason)

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
        return BackendIdentity(outputs, on_open_routes=True)

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

    def _translate(self, x: Exchange) -> Reason | None:
        """Replace the method, target and host of ``x`` with those that the ingress describes; a refusal or None."""
        if x.client is None or not x.client.peer_trusted:
            return Reason.PEER_UNTRUSTED
        if x.path.startswith(_ENVOY + b"/"):
            x.path = x.path[len(_ENVOY) :]
            return None
        families = _SHAPES.get(x.path)
        if families is None:
            return Reason.FORWARDED_INVALID
        fields = x.forwarded or []
        present = [family for family in families if any(name in family for name, _ in fields)]
        if len(present) != 1:
            return Reason.FORWARDED_INVALID
        method_name, uri_name = family = present[0]
        methods = [value for name, value in fields if name == method_name]
        uris = [value for name, value in fields if name == uri_name]
        if len(methods) != 1 or len(uris) != 1 or TOKEN.fullmatch(methods[0]) is None:
            return Reason.FORWARDED_INVALID
        if len(methods[0]) + len(uris[0]) > self._max_request_line:
            return Reason.TARGET_TOO_LONG
        uri = _URI.fullmatch(uris[0])
        if uri is None:
            return Reason.FORWARDED_INVALID
        # Compared by value: in the compiled build a tuple has no identity.
        if family == _FORWARDED:
            hosts = [value for name, value in fields if name == _FORWARDED_HOST]
            name = host_name(hosts[0]) if len(hosts) == 1 else None
            if name is None:
                return Reason.FORWARDED_INVALID
            x.host_name = name
        x.method = methods[0]
        x.path = uri[1]
        x.query = uri[2] or b""
        return None
