"""The parse phase: parses the bytes of a request head into the first slots of an ``Exchange``.

Rules of this module:
1. The grammar decides (``http1/grammar.py``, ``core/request/request_reading.py``). Anything that it does not accept is
   refused, and the connection closes.
2. Framing is decided once, here (RFC 9112 section 6.3): one Content-Length of plain digits, or exactly
   ``Transfer-Encoding: chunked`` on HTTP/1.1, or no body. Anything else is refused.
3. A field that another parser could mistake for one that has a meaning here, because it differs only in case or has
   "_" or "." for "-", is dropped, never forwarded (docs/threat-model.md §2).
4. Forwarded field lines keep their order, case and repeats.
5. A token may occur only where a credential is presented (``core/token_search.py``): not in the target, and not in any
   other field, forwarded or not. Which fields these are depends on the route, which is not known yet: fields that are
   a place on some route are kept apart, and the authenticate phase chooses among them.
6. A field that names a second resource is forwarded, and kept for the phase that judges it.
7. A request that has passed this node before, or that may not be forwarded any further, ends here (RFC 9110 sections
   7.6.2 and 7.6.3): two gateways in front of each other must not exhaust themselves with one request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from proxy.core.credential_places import PresentedFields
from proxy.core.reasons import Reason
from proxy.core.request.claims import FAMILY_NAMES, fold
from proxy.core.request.client_address import REQUEST_ID
from proxy.core.request.cors import CorsRequest
from proxy.core.request.request_reading import TOKEN, host_name, is_connect, is_query, other_form
from proxy.core.token_search import TokenSearch
from proxy.gateway.exchange import Exchange
from proxy.gateway.http1.body import ChunkedBody, LengthBody
from proxy.gateway.http1.grammar import NAME_MEMO, NAME_MEMO_LENGTH, head_lines, trimmed, without_fields

_MEMO_LIMIT: Final = 4096
_MAX_LENGTH_DIGITS: Final = 18


# What the parser does with a field whose name it knows. Plain integers, because comparing members of an enumeration
# costs a compiled module two look-ups each time.
_UNKNOWN: Final = -1
_PASS: Final = 0
_DROP: Final = 1
_HOST: Final = 2
_AUTHORIZATION: Final = 3
_CONNECTION: Final = 4
_CONTENT_LENGTH: Final = 5
_TRANSFER_ENCODING: Final = 6
_EXPECT: Final = 7
_PRESENTED: Final = 8
_FORWARDED: Final = 9
_UPGRADE: Final = 10
_VIA: Final = 11
_MAX_FORWARDS: Final = 12
_SECOND_TARGET: Final = 13
_LOGIN: Final = 14
_BELIEVED: Final = 15
_ORIGIN: Final = 16
_REQUEST_METHOD: Final = 17
_INGRESS: Final = 18

_HOP_BY_HOP: Final = (
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"http2-settings",
)
"""RFC 9110 section 7.6.1, and the companions of an upgrade that this gateway does not forward."""

FORWARDED_FIELDS: Final = (
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"x-forwarded-method",
    b"x-forwarded-uri",
    b"x-original-method",
    b"x-original-uri",
)
"""Fields that are believed only from trusted peers, by the mutate phase and by forward auth."""

INGRESS_FIELDS: Final = (b"x-real-ip", b"x-forwarded-prefix", b"x-forwarded-port", REQUEST_ID)
"""Fields that are kept from trusted peers, and dropped from all others. None of them is forwarded as it is."""

_LOGIN_NAME: Final = re.compile(rb"auth|token|cred|secret|passw|api-?key|sec-websocket-protocol")
"""Names of fields that may carry a login in base64."""

_PREFLIGHT: Final = frozenset((b"origin", b"access-control-request-method"))

_NEVER_NOMINATED: Final = frozenset((b"host", b"authorization", b"content-length", b"transfer-encoding", b"cookie"))
"""Fields that ``Connection`` cannot remove: that would change the caller or the request (RFC 9110 section 7.6.1)."""


class HeadParser:
    """Parses request heads for one listener.

    ``stripped`` are folded names that are always removed; ``presented`` are folded names of fields, other than
    ``Authorization``, that carry credentials on some route; ``second_targets`` are folded names of fields that name
    another resource, in any spelling; ``believed`` are names of fields that are forwarded when a trusted peer sent
    them; ``ingress`` are those of ``INGRESS_FIELDS`` that are read from a trusted peer; ``describing`` are names of
    fields that are read like those of ``FORWARDED_FIELDS``. ``search`` finds misplaced tokens; ``drop_misplaced``: a
    field that contains one is dropped, instead of the request being refused. ``cors``: some route has a CORS policy.
    ``max_headers`` is the largest number of field lines; ``max_request_line`` (without its CRLF) and ``max_body`` are
    in bytes. ``pseudonym`` is this node's name in ``Via``; without it, loops are not detected.
    """

    def __init__(
        self,
        *,
        stripped: Iterable[bytes],
        presented: Iterable[bytes],
        max_headers: int,
        max_request_line: int,
        max_body: int | None,
        search: TokenSearch,
        second_targets: Iterable[bytes] = (),
        believed: Iterable[bytes] = (),
        ingress: Iterable[bytes] = INGRESS_FIELDS,
        describing: Iterable[bytes] = (),
        drop_misplaced: bool = False,
        cors: bool = False,
        pseudonym: bytes = b"",
    ) -> None:
        fields: dict[bytes, int] = dict.fromkeys(second_targets, _SECOND_TARGET)
        fields.update(dict.fromkeys(stripped, _DROP))
        fields.update(dict.fromkeys(believed, _BELIEVED))
        fields.update(dict.fromkeys(ingress, _INGRESS))
        fields.update(dict.fromkeys(_HOP_BY_HOP, _DROP))
        fields.update(dict.fromkeys((*FORWARDED_FIELDS, *describing), _FORWARDED))
        fields[b"host"] = _HOST
        fields[b"authorization"] = _AUTHORIZATION
        fields[b"connection"] = _CONNECTION
        fields[b"content-length"] = _CONTENT_LENGTH
        fields[b"transfer-encoding"] = _TRANSFER_ENCODING
        fields[b"expect"] = _EXPECT
        fields[b"upgrade"] = _UPGRADE
        own = frozenset(presented)
        fields.update(dict.fromkeys(own, _PRESENTED))
        if cors:
            # What the operator drops is not forwarded for the sake of CORS.
            fields.setdefault(b"origin", _ORIGIN)
            fields.setdefault(b"access-control-request-method", _REQUEST_METHOD)
            # What makes a request a preflight must arrive with it.
            own |= _PREFLIGHT
        if pseudonym:
            fields[b"via"] = _VIA
            fields[b"max-forwards"] = _MAX_FORWARDS
        self._fields = fields
        self._never_nominated = _NEVER_NOMINATED | own
        self._pseudonym = pseudonym
        self._search = search
        self._drop_misplaced = drop_misplaced
        self._codes: dict[bytes, int] = {}
        self._hosts: dict[bytes, str] = {}
        self._max_headers = max_headers
        self._max_request_line = max_request_line
        self._max_body = max_body

    def parse(self, x: Exchange, head: bytes) -> Reason | None:
        """Fill the parse slots of ``x`` from ``head``, given without its final two CRLF; a refusal or None."""
        lines = head_lines(head)
        if lines is None:
            return Reason.REQUEST_MALFORMED
        line = lines[0]
        if len(line) > self._max_request_line:
            return Reason.TARGET_TOO_LONG
        parts = line.split(b" ")
        if len(parts) != 3:
            return Reason.REQUEST_MALFORMED
        x.method = method = parts[0]
        path, mark, after = parts[1].partition(b"?")
        if not path or 0x09 in path:
            return Reason.REQUEST_MALFORMED
        if mark:
            if not is_query(after):
                return Reason.REQUEST_MALFORMED
            x.query = mark + after
        if method != b"GET":
            x.head_only = method == b"HEAD"
            if TOKEN.fullmatch(method) is None:
                return Reason.REQUEST_MALFORMED
            if is_connect(method):
                return Reason.METHOD_REFUSED
        version = parts[2]
        if version != b"HTTP/1.1":
            if version != b"HTTP/1.0":
                return Reason.REQUEST_MALFORMED
            x.version = 0
            x.keep_alive = False
        if len(lines) - 1 > self._max_headers:
            return Reason.HEAD_TOO_LARGE
        refusal = self._fields_of(x, lines)
        if refusal is not None:
            return refusal
        # One search for all, because most of a search's cost is its start.
        searched = parts[1] + x.kept
        forwarded = x.forwarded
        if forwarded is not None:
            searched += b"\r\n" + b"\r\n".join([value for _, value in forwarded])
        if self._search.contains(searched):
            self._misplaced(x, parts[1])
        if path[0] == 0x2F:
            x.path = path
            return None
        origin = other_form(method, path, x.host)
        if isinstance(origin, Reason):
            return origin
        x.path = origin
        return None

    def _fields_of(self, x: Exchange, lines: list[bytes]) -> Reason | None:
        kept = [b""]
        codes = self._codes
        host_seen = False
        connection: bytes | None = None
        for at in range(1, len(lines)):
            line = lines[at]
            name, colon, value = line.partition(b":")
            code = codes.get(name, _UNKNOWN)
            if code == _UNKNOWN or not colon:
                if not colon or TOKEN.fullmatch(name) is None:
                    return Reason.REQUEST_MALFORMED
                code = self._classify(name)
            if code == _PASS:
                kept.append(line)
                continue
            value = trimmed(value)
            if code == _HOST:
                if host_seen:
                    return Reason.HOST_INVALID
                host_seen = True
                known = self._hosts.get(value)
                if known is None:
                    known = self._host_name(value)
                    if known is None:
                        return Reason.HOST_INVALID
                x.host = value
                x.host_name = known
                kept.append(b"Host: " + value)
            elif code == _AUTHORIZATION:
                if x.authorization is not None:
                    return Reason.CREDENTIAL_AMBIGUOUS
                x.authorization = value
            elif code == _CONNECTION:
                connection = value if connection is None else connection + b"," + value
            elif code == _DROP:
                if self._search.contains_credential(value):
                    x.misplaced = x.misplaced or not self._drop_misplaced
            else:
                refusal = self._rare(x, code, line, name, value, kept)
                if refusal is not None:
                    return refusal
        if not host_seen:
            return Reason.HOST_INVALID
        x.kept = b"\r\n".join(kept)
        if connection is None:
            x.websocket = False
        elif connection != b"keep-alive" or x.websocket or not x.version:
            refusal = self._connection(x, connection)
            if refusal is not None:
                return refusal
        return self._framing(x) if x.chunked or x.content_length > 0 else None

    def _classify(self, name: bytes) -> int:
        """The code of a received name: the exact name in any case has its meaning; any other alias is dropped."""
        folded = fold(name)
        field = self._fields.get(folded)
        if field is None:
            code = _PASS
            if folded.startswith(FAMILY_NAMES):
                code = _DROP
            elif _LOGIN_NAME.search(folded) is not None:
                code = _LOGIN
        else:
            code = field if name.lower() == folded or field == _SECOND_TARGET else _DROP
        if len(self._codes) < NAME_MEMO and len(name) <= NAME_MEMO_LENGTH:
            self._codes[name] = code
        return code

    def _misplaced(self, x: Exchange, target: bytes) -> None:
        """Drop the fields of ``x`` that contain a token, or have the request refused; a target is never changed.

        ``Host`` is part of the target (RFC 9110 section 7.1), and is forwarded in ``X-Forwarded-Host`` too. Fields that
        describe a request or its way are not dropped either.
        """
        search = self._search
        kept_only = not any([search.contains(value) for _, value in x.forwarded or []])
        if self._drop_misplaced and kept_only and not search.contains(target + b" " + x.host):
            x.kept = search.without(x.kept)
        else:
            x.misplaced = True

    def _host_name(self, host: bytes) -> str | None:
        name = host_name(host)
        if name is not None and len(self._hosts) < _MEMO_LIMIT:
            self._hosts[host] = name
        return name

    def _rare(self, x: Exchange, code: int, line: bytes, name: bytes, value: bytes, kept: list[bytes]) -> Reason | None:
        if code == _CONTENT_LENGTH:
            if x.content_length >= 0 or not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
                return Reason.REQUEST_MALFORMED
            x.content_length = int(value)
            # Normalised: another parser might read a leading zero as an octal number.
            kept.append(b"Content-Length: %d" % x.content_length)
        elif code == _TRANSFER_ENCODING:
            if x.chunked or x.version == 0 or value.lower() != b"chunked":
                return Reason.REQUEST_MALFORMED
            x.chunked = True
        elif code == _EXPECT:
            if x.expects_continue or value.lower() != b"100-continue":
                return Reason.EXPECTATION_FAILED
            # A 1.0 client cannot wait for an interim response (RFC 9110 section 10.1.1).
            if x.version:
                x.expects_continue = True
                kept.append(b"Expect: 100-continue")
        elif code == _PRESENTED:
            presented = x.presented
            if presented is None:
                x.presented = presented = PresentedFields(drop_misplaced=self._drop_misplaced)
            presented.fields.append((name.lower(), value, line))
        elif code == _FORWARDED:
            _keep_forwarded(x, name, value)
        elif code == _LOGIN:
            if not self._search.contains_credential(value):
                kept.append(line)
            elif not self._drop_misplaced:
                x.misplaced = True
        elif code == _SECOND_TARGET:
            if x.second is None:
                x.second = []
            x.second.append((fold(name), value))
            kept.append(line)
        elif code in (_BELIEVED, _INGRESS):
            if self._search.contains_credential(value):
                x.misplaced = x.misplaced or not self._drop_misplaced
            elif x.client is not None and x.client.peer_trusted:
                if code == _BELIEVED:
                    kept.append(line)
                else:
                    _keep_forwarded(x, name, value)
        elif code == _UPGRADE:
            # Any other protocol or list of protocols is dropped with its field (RFC 9110 section 7.8).
            x.websocket = value.lower() == b"websocket" and x.method == b"GET" and x.version == 1
        elif code in (_ORIGIN, _REQUEST_METHOD):
            cors = x.cors
            if cors is None:
                x.cors = cors = CorsRequest()
            if code == _ORIGIN:
                cors.has_origin(value)
            else:
                cors.method = value
            kept.append(line)
        elif code == _VIA:
            # Anywhere in the value, even in a comment: the name is random, so only this node has put it there.
            if self._pseudonym in value:
                return Reason.LOOP_DETECTED
            kept.append(line)
        elif code == _MAX_FORWARDS:
            return self._max_forwards(x, line, value, kept)
        return None

    @staticmethod
    def _max_forwards(x: Exchange, line: bytes, value: bytes, kept: list[bytes]) -> Reason | None:
        """Decrement ``Max-Forwards``, which has a meaning for OPTIONS only (RFC 9110 section 7.6.2)."""
        if x.method != b"OPTIONS":
            kept.append(line)
            return None
        if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
            return Reason.REQUEST_MALFORMED
        left = int(value)
        if not left:
            # The gateway is the final recipient and has no such resource.
            return Reason.NO_ROUTE
        kept.append(b"%b: %d" % (line.partition(b":")[0], left - 1))
        return None

    def _connection(self, x: Exchange, value: bytes) -> Reason | None:
        """Obey ``Connection`` (RFC 9110 section 7.6.1): persistence, and fields nominated for removal."""
        options = {option.strip(b" \t") for option in value.lower().split(b",")} - {b""}
        if any(TOKEN.fullmatch(option) is None for option in options):
            return Reason.REQUEST_MALFORMED
        x.keep_alive = b"close" not in options and (x.version == 1 or b"keep-alive" in options)
        nominated = options - {b"close", b"keep-alive", b"upgrade"}
        x.websocket = x.websocket and b"upgrade" in options
        if nominated & self._never_nominated:
            return Reason.REQUEST_MALFORMED
        if nominated:
            x.kept = without_fields(x.kept, nominated)
        return None

    def _framing(self, x: Exchange) -> Reason | None:
        if x.chunked:
            if x.content_length >= 0:
                return Reason.REQUEST_MALFORMED
            x.body = ChunkedBody()
        else:
            if self._max_body is not None and x.content_length > self._max_body:
                return Reason.BODY_TOO_LARGE
            x.body = LengthBody(x.content_length)
        x.body_done = False
        x.websocket = False
        return None


def _keep_forwarded(x: Exchange, name: bytes, value: bytes) -> None:
    if x.forwarded is None:
        x.forwarded = []
    x.forwarded.append((name.lower(), value))
