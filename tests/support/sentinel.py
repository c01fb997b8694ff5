"""The wire sentinel: checks every byte that a gateway under test sends to a backend strictly against RFC 9112.

It is written from the standard alone and shares no code with the gateway, so that an error goes unnoticed only if both
make the same mistake. It checks what *we* may send, which is narrower than what a server must accept:

1. A request line is ``METHOD SP origin-form SP HTTP/1.1`` (§3), or asterisk-form for OPTIONS only (§3.2.4).
2. Field lines are ``token ":" OWS value`` without folding, bare CR or LF, NUL or other control bytes (§5).
3. Exactly one ``Host`` (§3.2); at most one of ``Content-Length`` and ``Transfer-Encoding``, once, plain (§6.1, §6.2).
4. Chunks have lower-case hexadecimal sizes without padding or extensions, end where their sizes say, and no trailers
   follow the last chunk (§7.1).
5. No hop-by-hop field (RFC 9110 §7.6.1), except the pair that requests a WebSocket.
6. A field that affects security (framing, host, login, identity, forwarding) has no other spelling that a CGI or WSGI
   backend would fold to the same variable, and identity and forwarding fields occur at most once.
7. There are no bytes between messages, and no request begins before the answer to the previous one has begun.
8. A message ends at the same byte as in the backend's own parser.
"""

from __future__ import annotations

import re
from typing import Final

TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
#: RFC 3986 §3.3, and the four other characters that browsers do not escape; the query is visible ASCII without "#".
PATH: Final = rb"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/\[\]|^-]|%[0-9A-Fa-f]{2})*"
QUERY: Final = rb"(?:\?[!\"$-~]*)?"
REQUEST_LINE: Final = re.compile(rb"(" + TOKEN + rb") (" + PATH + QUERY + rb"|\*) HTTP/1\.1")
FIELD_LINE: Final = re.compile(rb"(" + TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
REG_NAME: Final = re.compile(
    rb"(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+(?::[0-9]{0,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{0,5})?"
)
LENGTH: Final = re.compile(rb"0|[0-9]{1,18}")
CHUNK_SIZE: Final = re.compile(rb"0|[1-9a-f][0-9a-f]{0,15}")

HOP_BY_HOP: Final = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te",
        b"trailer", b"upgrade", b"http2-settings",
    )
)  # fmt: skip
FRAMING: Final = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))
IDENTITY: Final = frozenset(
    (
        b"x-auth-user", b"x-auth-email", b"x-auth-org", b"x-auth-role", b"x-auth-scopes", b"x-auth-token",
        b"x-auth-token-name", b"x-auth-kind", b"x-request-id",
        b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-user", b"x-forwarded-email",
        b"x-forwarded-groups", b"x-forwarded-preferred-username",
        b"remote-user", b"remote-groups", b"remote-name", b"remote-email",
    )
)  # fmt: skip
ONCE_EXACTLY: Final = (b"host", b"x-request-id", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
DECIDING: Final = FRAMING | HOP_BY_HOP | IDENTITY | {b"authorization", b"x-api-key"}
MOST_HEAD_BYTES: Final = 1 << 20

#: Violations found in this run of the suite; the plugin ends the run at the first.
FOUND: list[str] = []


class Violation(AssertionError):
    """The gateway sent something that it must not send."""


class Sentinel:
    """Checks the gateway's side of one upstream connection. ``name`` identifies the connection in a report."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting = b""
        self._taken = 0
        self._expects = _HEAD
        self._missing = 0
        self._answered = True
        self._opaque = False
        self._asks_upgrade = False
        self.ends: list[int] = []
        """The end of each message, in bytes from the beginning of the connection."""

    def sent(self, data: bytes) -> None:
        """Check the next bytes from the gateway. Raises ``Violation``."""
        if self._opaque:
            return
        self._waiting += data
        while self._waiting and self._step():
            pass

    def answered(self, beginning: bytes) -> None:
        """Record that the backend is about to send these bytes; call it before they can reach the gateway."""
        at = 0
        while beginning.startswith(b"HTTP/1.1 1", at):
            if self._asks_upgrade and beginning.startswith(b"HTTP/1.1 101 ", at):
                self._opaque = True
            end = beginning.find(b"\r\n\r\n", at)
            at = len(beginning) if end < 0 else end + 4
        if at < len(beginning):
            self._answered = True

    def agree(self, end: int) -> None:
        """Check that a message ends where the backend has read to. Raises ``Violation``."""
        if not self.ends or self.ends[-1] != end:
            raise self._wrong(f"the backend read a message to byte {end}, the standard ends it at {self.ends[-1:]}")

    def _step(self) -> bool:
        """Consume the next complete part of the waiting bytes; return whether it consumed anything."""
        if self._expects == _HEAD:
            return self._head()
        if self._expects in (_BODY, _CHUNK):
            count = min(self._missing, len(self._waiting))
            self._take(count)
            self._missing -= count
            if not self._missing:
                self._expects = _HEAD if self._expects == _BODY else _CHUNK_END
                if self._expects == _HEAD:
                    self._end()
            return True
        line, found, _ = self._waiting.partition(b"\r\n")
        if self._expects == _CHUNK_END and not b"\r\n".startswith(self._waiting[:2]):
            raise self._wrong("a chunk that does not end where its size says")
        if not found:
            if len(self._waiting) > 18 or re.search(rb"\r[^\n]|[^0-9a-f\r]", self._waiting):
                raise self._wrong("a chunk size that is none")
            return False
        self._take(len(line) + 2)
        if self._expects == _CHUNK_END:
            self._expects = _CHUNK_SIZE
        elif self._expects == _LAST_END:
            if line:
                raise self._wrong("trailers behind the last chunk")
            self._expects = _HEAD
            self._end()
        else:
            if not CHUNK_SIZE.fullmatch(line):
                raise self._wrong(f"a chunk size that is none: {line[:40]!r}")
            self._missing = int(line, 16)
            self._expects = _CHUNK if self._missing else _LAST_END
        return True

    def _head(self) -> bool:
        if not self._answered:
            raise self._wrong(f"bytes before the last message was answered: {self._waiting[:40]!r}")
        if not re.match(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]", self._waiting):
            raise self._wrong(f"bytes between messages: {self._waiting[:40]!r}")
        head, whole, _ = self._waiting.partition(b"\r\n\r\n")
        if not whole:
            if len(head) > MOST_HEAD_BYTES:
                raise self._wrong("a head without end")
            return False
        lines = head.split(b"\r\n")
        method = self._request_line(lines[0])
        self._frame(method, [self._field(line) for line in lines[1:]])
        self._take(len(head) + 4)
        self._answered = False
        if self._expects == _HEAD:
            self._end()
        return True

    def _request_line(self, line: bytes) -> bytes:
        found = REQUEST_LINE.fullmatch(line)
        if not found:
            raise self._wrong(f"a request line that is none: {line[:200]!r}")
        if found[2] == b"*" and found[1] != b"OPTIONS":
            raise self._wrong("asterisk-form without OPTIONS")
        if found[1] in (b"CONNECT", b"TRACE"):
            raise self._wrong(f"a method that is never forwarded: {found[1].decode()}")
        return found[1]

    def _field(self, line: bytes) -> tuple[bytes, bytes]:
        found = FIELD_LINE.fullmatch(line)
        if not found:
            raise self._wrong(f"a field line that is none: {line[:200]!r}")
        return found[1], found[2].rstrip(b" \t")

    def _frame(self, method: bytes, fields: list[tuple[bytes, bytes]]) -> None:
        """Check the fields and determine what is expected after the head."""
        values: dict[bytes, list[bytes]] = {}
        for name, value in fields:
            lowered = name.lower()
            folded = re.sub(rb"[^0-9a-z]", b"-", lowered)
            if folded in DECIDING and folded != lowered:
                raise self._wrong(f"an alias of {folded.decode()}: {name.decode('latin-1')}")
            values.setdefault(lowered, []).append(value)
        for name in ONCE_EXACTLY:
            if len(values.get(name, ())) != 1:
                raise self._wrong(f"{name.decode()} {len(values.get(name, ()))} times instead of once")
        for name in FRAMING | IDENTITY:
            if len(values.get(name, ())) > 1:
                raise self._wrong(f"{name.decode()} more than once")
        if not REG_NAME.fullmatch(values[b"host"][0]):
            raise self._wrong("a Host that is none")
        if values.get(b"expect", [b"100-continue"])[0].lower() != b"100-continue":
            raise self._wrong("an unknown Expect")
        self._hop_by_hop(method, values)
        lengths, codings = values.get(b"content-length"), values.get(b"transfer-encoding")
        if lengths and codings:
            raise self._wrong("Content-Length beside Transfer-Encoding")
        self._missing = 0
        if codings:
            if codings != [b"chunked"]:
                raise self._wrong(f"a transfer coding that is not exactly chunked: {codings!r}")
            self._expects = _CHUNK_SIZE
        elif lengths:
            if not LENGTH.fullmatch(lengths[0]):
                raise self._wrong(f"a Content-Length that is none: {lengths[0][:40]!r}")
            self._missing = int(lengths[0])
            self._expects = _BODY if self._missing else _HEAD

    def _hop_by_hop(self, method: bytes, values: dict[bytes, list[bytes]]) -> None:
        found = HOP_BY_HOP & values.keys()
        self._asks_upgrade = False
        if not found:
            return
        asked = [values.get(name, [b""])[0].lower() for name in (b"connection", b"upgrade")]
        if found != {b"connection", b"upgrade"} or method != b"GET" or asked != [b"upgrade", b"websocket"]:
            raise self._wrong(f"hop-by-hop: {b', '.join(sorted(found)).decode()}")
        self._asks_upgrade = True

    def _take(self, count: int) -> None:
        self._waiting = self._waiting[count:]
        self._taken += count

    def _end(self) -> None:
        self.ends.append(self._taken)

    def _wrong(self, what: str) -> Violation:
        return Violation(f"wire sentinel, {self._name}, message {len(self.ends) + 1}, byte {self._taken}: {what}")


_HEAD, _BODY, _CHUNK_SIZE, _CHUNK, _CHUNK_END, _LAST_END = range(6)


class Watch:
    """A sentinel that adds its first violation to ``FOUND`` instead of raising, and then stops checking."""

    def __init__(self, name: str) -> None:
        self._sentinel: Sentinel | None = Sentinel(name)
        self._seen = 0

    def sent(self, data: bytes) -> None:
        """The same as ``Sentinel.sent``."""
        self._seen += len(data)
        if self._sentinel is not None:
            try:
                self._sentinel.sent(data)
            except Violation as violation:
                self._report(violation)

    def answered(self, beginning: bytes) -> None:
        """The same as ``Sentinel.answered``."""
        if self._sentinel is not None:
            self._sentinel.answered(beginning)

    def agree(self, end: int) -> None:
        """The same as ``Sentinel.agree``."""
        if self._sentinel is not None:
            try:
                self._sentinel.agree(end)
            except Violation as violation:
                self._report(violation)

    def _report(self, violation: Violation) -> None:
        self._sentinel = None
        FOUND.append(str(violation))
