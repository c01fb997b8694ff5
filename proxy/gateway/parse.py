"""The parse phase: the bytes of a request head become the first slots of an `Exchange`.

Rules of this module:
1. The grammar decides (`grammar.py`); what it does not match is refused, and the connection closes.
2. Framing is decided once, here (RFC 9112 section 6.3): one Content-Length of plain digits, or exactly
   `Transfer-Encoding: chunked` on HTTP/1.1, or no body. Anything else is refused.
3. A field that another reader could take for one that decides something here, because it differs only in case or in
   "_" and "." for "-", is dropped, never forwarded (threats.md section 2).
4. Field lines that go on to the backend go on as received: same order, same case, same repeats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from proxy.core.identity import fold
from proxy.core.reasons import Reason
from proxy.core.target import split_target
from proxy.gateway.body import ChunkedBody, LengthBody
from proxy.gateway.exchange import Exchange
from proxy.gateway.grammar import SHORTEST_LINE, TOKEN, field_splitter, host_name, without_fields

_MEMO_LIMIT: Final = 4096
_LINE_REST: Final = len("  HTTP/1.1")
_MAX_LENGTH_DIGITS: Final = 18


class Field(IntEnum):
    """What the parser does with a field whose name it knows."""

    DROP = 0
    HOST = 1
    AUTHORIZATION = 2
    CONNECTION = 3
    CONTENT_LENGTH = 4
    TRANSFER_ENCODING = 5
    EXPECT = 6
    API_KEY = 7
    FORWARDED = 8
    UPGRADE = 9


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
"""Fields that are believed from trusted peers only; the phases that believe them say so."""

_NEVER_NOMINATED: Final = frozenset((b"host", b"authorization", b"content-length", b"transfer-encoding", b"cookie"))
"""Fields that `Connection` cannot remove: their loss would change who asks, or what (RFC 9110 section 7.6.1)."""


class HeadParser:
    """Parses request heads for one listener.

    `stripped` are folded names that are always removed; `api_key` says whether `X-API-Key` carries credentials here;
    `max_headers` is the largest number of field lines; `max_request_line` (without its CRLF) and `max_body` are in
    bytes.
    """

    def __init__(
        self, *, stripped: Iterable[bytes], api_key: bool, max_headers: int, max_request_line: int, max_body: int | None
    ) -> None:
        fields: dict[bytes, Field] = dict.fromkeys(stripped, Field.DROP)
        fields.update(dict.fromkeys(_HOP_BY_HOP, Field.DROP))
        fields.update(dict.fromkeys(FORWARDED_FIELDS, Field.FORWARDED))
        fields[b"host"] = Field.HOST
        fields[b"authorization"] = Field.AUTHORIZATION
        fields[b"connection"] = Field.CONNECTION
        fields[b"content-length"] = Field.CONTENT_LENGTH
        fields[b"transfer-encoding"] = Field.TRANSFER_ENCODING
        fields[b"expect"] = Field.EXPECT
        fields[b"upgrade"] = Field.UPGRADE
        if api_key:
            fields[b"x-api-key"] = Field.API_KEY
        self._fields = fields
        self._split = field_splitter(fields).split
        self._codes: dict[bytes, Field] = {}
        self._hosts: dict[bytes, str] = {}
        self._max_headers = max_headers
        self._surely_few = max_headers * SHORTEST_LINE
        self._max_request_line = max_request_line
        self._max_body = max_body

    def parse(self, x: Exchange, matched: re.Match[bytes]) -> Reason | None:
        """Fill the parse slots of `x` from a match of `grammar.REQUEST_HEAD`; return a refusal or None."""
        x.method, path, query, minor, lines = matched.groups(b"")
        x.head_only = x.method == b"HEAD"
        if minor == b"0":
            x.version = 0
            x.keep_alive = False
        if len(lines) > self._surely_few and lines.count(b"\r\n") > self._max_headers:
            return Reason.HEAD_TOO_LARGE
        if len(x.method) + len(path) + len(query) + _LINE_REST > self._max_request_line:
            return Reason.TARGET_TOO_LONG
        refusal = self._fields_of(x, lines)
        if refusal is not None:
            return refusal
        x.query = query
        if path[0] == 0x2F:
            x.path = path
            return None
        return self._other_form(x, path)

    def _other_form(self, x: Exchange, target: bytes) -> Reason | None:
        """Absolute-form, authority-form and asterisk-form (RFC 9112 section 3.2)."""
        if x.method == b"CONNECT":
            return Reason.METHOD_REFUSED
        if target == b"*" and x.method == b"OPTIONS":
            # Well-formed (RFC 9112 section 3.2.4), and about no resource that a route could name.
            return Reason.NO_ROUTE
        parts = split_target(target)
        if parts is None or parts[0] is None or parts[0].lower() != x.host.lower():
            return Reason.TARGET_NOT_CANONICAL
        x.path = parts[1]
        return None

    def _fields_of(self, x: Exchange, lines: bytes) -> Reason | None:
        parts = self._split(lines)
        count = len(parts)
        if count == 1:
            return Reason.HOST_INVALID
        kept = [parts[0]]
        codes = self._codes
        host_seen = False
        connection: bytes | None = None
        for at in range(1, count, 3):
            name = parts[at]
            code = codes.get(name)
            if code is None:
                code = self._classify(name)
            if code == 1:
                if host_seen:
                    return Reason.HOST_INVALID
                host_seen = True
                host = parts[at + 1]
                host_name = self._hosts.get(host)
                if host_name is None:
                    host = host.rstrip(b" \t")
                    host_name = self._host_name(host)
                    if host_name is None:
                        return Reason.HOST_INVALID
                x.host = host
                x.host_name = host_name
                kept.append(b"\r\nHost: ")
                kept.append(host)
            elif code == 2:
                if x.authorization is not None:
                    return Reason.CREDENTIAL_AMBIGUOUS
                x.authorization = parts[at + 1]
            elif code == 3:
                value = parts[at + 1]
                connection = value if connection is None else connection + b"," + value
            elif code:
                refusal = self._rare(x, code, name, parts[at + 1].rstrip(b" \t"), kept)
                if refusal is not None:
                    return refusal
            kept.append(parts[at + 2])
        if not host_seen:
            return Reason.HOST_INVALID
        x.kept = b"".join(kept)
        if connection is None:
            x.websocket = False
        elif connection != b"keep-alive" or not x.version:
            refusal = self._connection(x, connection)
            if refusal is not None:
                return refusal
        return self._framing(x) if x.chunked or x.content_length > 0 else None

    def _classify(self, name: bytes) -> Field:
        """Look a received name up: the exact name in any case has its meaning, any other alias of it is dropped."""
        folded = fold(name)
        code = self._fields[folded] if name.lower() == folded else Field.DROP
        if len(self._codes) < _MEMO_LIMIT:
            self._codes[name] = code
        return code

    def _host_name(self, host: bytes) -> str | None:
        name = host_name(host)
        if name is not None and len(self._hosts) < _MEMO_LIMIT:
            self._hosts[host] = name
        return name

    def _rare(self, x: Exchange, code: Field, name: bytes, value: bytes, kept: list[bytes]) -> Reason | None:
        if code == Field.CONTENT_LENGTH:
            if x.content_length >= 0 or not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
                return Reason.REQUEST_MALFORMED
            x.content_length = int(value)
            kept.append(b"\r\nContent-Length: " + value)
        elif code == Field.TRANSFER_ENCODING:
            if x.chunked or x.version == 0 or value.lower() != b"chunked":
                return Reason.REQUEST_MALFORMED
            x.chunked = True
        elif code == Field.EXPECT:
            if x.expects_continue or value.lower() != b"100-continue":
                return Reason.EXPECTATION_FAILED
            # A 1.0 client cannot wait for an interim answer (RFC 9110 section 10.1.1).
            if x.version:
                x.expects_continue = True
                kept.append(b"\r\nExpect: 100-continue")
        elif code == Field.API_KEY:
            if x.api_key is not None:
                return Reason.CREDENTIAL_AMBIGUOUS
            x.api_key = value
        elif code == Field.FORWARDED:
            if x.forwarded is None:
                x.forwarded = []
            x.forwarded.append((name.lower(), value))
        elif code == Field.UPGRADE:
            # Any other protocol, and any list of them, is dropped with its field (RFC 9110 section 7.8).
            x.websocket = value.lower() == b"websocket" and x.method == b"GET" and x.version == 1
        return None

    def _connection(self, x: Exchange, value: bytes) -> Reason | None:
        """Obey `Connection` (RFC 9110 section 7.6.1): persistence, and fields nominated for removal."""
        options = {option.strip(b" \t") for option in value.lower().split(b",")} - {b""}
        if any(TOKEN.fullmatch(option) is None for option in options):
            return Reason.REQUEST_MALFORMED
        x.keep_alive = b"close" not in options and (x.version == 1 or b"keep-alive" in options)
        nominated = options - {b"close", b"keep-alive", b"upgrade"}
        x.websocket = x.websocket and b"upgrade" in options
        if nominated & _NEVER_NOMINATED:
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
