"""The forward-auth entry: an ingress asks whether a request that it describes may pass.

Rules of this module:
1. Only peers of the listener's trusted networks are answered; what they describe is believed because they are them.
2. Every shape reads its own headers and no other's. Method and URI must each be there exactly once and be readable.
3. The described target passes the same checks and the same phases as a proxied one.
4. Allowed is exactly 200 with every identity header, empty where unknown, so that nothing a client sent survives.
   Organisation and role are those of the organisation that the described request touches.
5. An ingress does not wait long: an authority that does not answer in ``patience`` seconds is unavailable.

Shapes, by path: ``/nginx`` (X-Original-Method, X-Original-URI), ``/traefik`` and ``/caddy`` (X-Forwarded-Method, -Uri,
-Host), ``/envoy`` in front of the original path (method and Host are the request's own), and ``/``: the one family that
is there.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.core.reasons import Reason
from proxy.core.request.request_reading import TOKEN, host_name
from proxy.core.routes import RouteTable
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
    """Answers an ingress. ``empty_lines`` are the identity headers without values."""

    def __init__(
        self,
        *,
        routes: RouteTable,
        authenticator: Authenticator,
        responder: Responder,
        recorder: ExchangeRecorder,
        empty_lines: bytes,
        max_request_line: int,
        patience: float,
    ) -> None:
        super().__init__(routes=routes, authenticator=authenticator, responder=responder, recorder=recorder)
        self.describe(empty_lines, max_request_line, patience)

    def describe(self, empty_lines: bytes, max_request_line: int, patience: float) -> None:
        """Answer with these headers, take targets so long, and wait so long for the authority, from now on."""
        self._empty_lines = empty_lines
        self._max_request_line = max_request_line
        self.patience = patience

    def begin(self, x: Exchange) -> None:
        reason = self._translate(x)
        if reason is None:
            super().begin(x)
        else:
            self.refuse(x, reason)

    def hosts(self, x: Exchange) -> tuple[bytes, ...]:
        return (x.host_name.encode("ascii"),)

    def compares_ports(self) -> bool:
        # An ingress may leave the port out of the host that it sends on (nginx's ``$host``).
        return False

    def allowed(self, x: Exchange) -> None:
        client = x.client
        if client is None:
            return
        if not x.body_done:
            x.keep_alive = False
        x.status = 200
        entry, match = x.entry, x.match
        if entry is None:
            lines = self._empty_lines
        elif entry.org_lines is None:
            lines = entry.lines
        else:
            lines = entry.org_lines.of(None if match is None else match.org)
        connection = b"" if x.keep_alive else b"Connection: close\r\n"
        if x.keep_alive and not x.version:
            connection = b"Connection: keep-alive\r\n"
        client.respond(
            x,
            b"".join(
                (
                    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nCache-Control: no-store\r\n",
                    lines,
                    b"X-Request-Id: ",
                    x.request_id,
                    b"\r\n",
                    connection,
                    b"\r\n",
                )
            ),
        )

    def _translate(self, x: Exchange) -> Reason | None:
        """Replace the method, target and host of ``x`` by those that the ingress describes."""
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
        # By value: where this is compiled a pair is no object, and has no identity to ask for.
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
