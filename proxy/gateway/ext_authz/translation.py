"""Between a call of Envoy and the forward-auth call that patgate decides: pure functions.

Rules of this module:
1. The head of the forward-auth call contains what Envoy describes and nothing else. A name, method, target or value
   that could end its line or be read as another part is refused here; everything else is left to the parser.
2. Where two parts of the description disagree (``:path`` and ``path``), the call is refused.
3. The client's fields never stand for Envoy's: the shared secret is taken from the metadata of the call, and the
   address of the client from ``source``. Without one, ``X-Forwarded-For`` is left out, and the address is Envoy's.
4. A requirement comes from Envoy's route only (``context_extensions``), and is read as in the path of a call.
5. Of lines that Envoy has joined by commas, those that may occur only once are two lines again: two credentials, two
   destinations. A destination with a comma is written twice, and so refused: it looks the same as two.
6. Outside raw headers Envoy replaces bytes that are not UTF-8 by ``!``, and forwards them as they were. So a target or
   a second target with a ``!`` is refused, unless the raw header confirms it.
7. Fields of the client's connection and of its body are not described: Envoy forwards the request, patgate does not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from proxy.core.request.claims import FAMILY_NAMES, fold
from proxy.core.request.client_address import FORWARDED_FOR, REAL_IP, parse_entry
from proxy.core.request.request_reading import TOKEN
from proxy.core.request.second_targets import IF, JUDGED
from proxy.gateway.described_request import ENVOY
from proxy.gateway.ext_authz import messages
from proxy.gateway.ext_authz.messages import Call

_TARGET: Final = re.compile(rb"[\x21-\x7e\x80-\xff]++")
_HOST: Final = re.compile(rb"[\x21-\x7e\x80-\xff]*+")
_VALUE: Final = re.compile(rb"[^\x00\r\n]*+")
_SECOND_CREDENTIAL: Final = re.compile(rb",[ \t]*+[!#$%&'*+\-.^_`|~0-9A-Za-z]++[ \t]++[^ \t]")
"""In a joined ``Authorization``: behind a comma another scheme with its credentials, and no parameter."""

_REQUIRED: Final = frozenset((b"entity", b"operation", b"id", b"org"))
"""Extensions of Envoy's route that are a requirement; others belong to other filters."""
_PLAIN: Final = re.compile(rb"[A-Za-z0-9._~@:=-]++")

_REPLACED: Final = b"!"
"""What Envoy writes for bytes that are not UTF-8."""
_PSEUDO: Final = (b":method", b":path", b":authority", b":scheme")
_HOP: Final = frozenset(
    (
        b"connection",
        b"content-length",
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_WRITTEN_BY_ENVOY: Final = frozenset(
    (
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-client-cert",
        b"x-envoy-external-address",
        b"x-envoy-internal",
    )
)
"""Claims that Envoy itself writes, or removes, before it asks."""
_ALWAYS_REMOVED: Final = b"proxy-authorization"
_OWN: Final = frozenset((b"content-length", b"connection", b"date", b"cache-control"))
"""Fields of an allowance that are of no concern to the application."""

UNREADABLE: Final = b"GET /unreadable HTTP/1.1\r\nHost: unreadable\r\n"
"""The call for a description that cannot be read: its path is no shape, so it is refused as one that is not valid."""


def head_of(call: Call, *, secret_name: bytes, secrets: Iterable[bytes]) -> bytes:
    """The head of the forward-auth call, with its empty line.

    ``secrets`` are the values in the metadata of the call named ``secret_name`` (folded), which is empty for none.
    """
    head = _described(call, secret_name)
    if head is None:
        head = UNREADABLE
    if secret_name:
        head += b"".join(b"%b: %b\r\n" % (secret_name, each) for each in secrets if _VALUE.fullmatch(each))
    return head + b"\r\n"


def _described(call: Call, secret_name: bytes) -> bytes | None:
    """The lines of the call without its secret; None if the description is not valid."""
    method, target, host = call.method, call.target, call.host
    if TOKEN.fullmatch(method) is None or _TARGET.fullmatch(target) is None or _HOST.fullmatch(host) is None:
        return None
    if call.fragment or (call.query and call.query != target.partition(b"?")[2]):
        return None
    required = [b"%b=%b" % (key, value) for key, value in call.extensions if key in _REQUIRED]
    if not all(_PLAIN.fullmatch(each) for each in required):
        return None
    before = b"/require/" + b"&".join(required) if required else b""
    lines = [b"%b %b%b%b HTTP/1.1\r\n" % (method, before, ENVOY, target)]
    if host:
        lines.append(b"Host: " + host + b"\r\n")
    same = {b":method": method, b":path": target, b":authority": host, b"host": host}
    seen: set[bytes] = set()
    for given, value in call.headers:
        name = given.lower()
        if name in same or name in _PSEUDO:
            # One of each, and the same as in the fields of the message.
            if name in seen or same.get(name, value) != value:
                return None
            seen.add(name)
            continue
        if TOKEN.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            return None
        if name in _HOP or name == REAL_IP or fold(name) == secret_name:
            continue
        if name == FORWARDED_FOR and not call.source:
            continue
        if call.joined and name == b"authorization" and (second := _SECOND_CREDENTIAL.search(value)) is not None:
            lines.append(b"authorization: " + value[: second.start()] + b"\r\n")
            value = value[second.start() + 1 :]
        if call.joined and fold(name) in JUDGED and (_REPLACED in value or (b"," in value and fold(name) != IF)):
            # Twice, and therefore refused. (An ``If`` with a comma between its lists is refused anyway.)
            lines.append(b"%b: %b\r\n" % (name, value))
        lines.append(b"%b: %b\r\n" % (name, value))
    if _REPLACED in method + target and (call.joined or not seen >= {b":method", b":path"}):
        return None
    if call.source:
        # Behind all that the client, and proxies before Envoy, have written: the end of the list is what counts.
        if parse_entry(call.source) is None:
            return None
        lines.append(b"%b: %b\r\n" % (FORWARDED_FOR, call.source))
    return b"".join(lines)


def to_remove(
    call: Call, *, stripped: Collection[bytes], places: Collection[bytes], credentials: Collection[bytes]
) -> list[str]:
    """The headers of the client's request that the application must not get, as they are named in it.

    ``stripped`` are folded names of claims, and ``places`` of fields that have a credential on some route: of these the
    aliases are removed, and the fields in ``credentials`` (names in lower case), which have one that is patgate's.
    """
    names: dict[bytes, None] = {}
    for given, _ in call.headers:
        name = given.lower()
        folded = fold(name)
        if name in _WRITTEN_BY_ENVOY or name.startswith(b":"):
            continue
        if (
            name in credentials
            or folded == _ALWAYS_REMOVED
            or folded in stripped
            or folded.startswith(FAMILY_NAMES)
            or (folded != name and folded in places)
        ):
            names[name] = None
    return [name.decode("ascii") for name in names if TOKEN.fullmatch(name) is not None]


def answer_of(response: bytes, removed: Sequence[str]) -> bytes:
    """The ``CheckResponse`` for the response of the forward-auth call; ``removed`` counts if it is an allowance."""
    head, _, body = response.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    status = int(line.split(b" ", 2)[1])
    headers: list[tuple[str, str]] = []
    for field in fields:
        name, _, value = field.partition(b":")
        folded = name.lower()
        if folded in (b"content-length", b"connection", b"date") or (status == 200 and folded in _OWN):
            continue
        if folded.startswith(b"x-patgate-"):
            # They repeat what Envoy passes on anyway.
            continue
        headers.append((name.decode("ascii"), value.strip(b" ").decode("ascii")))
    if status == 200:
        written = {name.lower() for name, _ in headers}
        return messages.allowance(headers, [name for name in removed if name not in written])
    return messages.refusal(status, headers, body.decode("utf-8"))
