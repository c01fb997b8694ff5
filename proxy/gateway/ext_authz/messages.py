"""The messages of ``envoy.service.auth.v3.Authorization/Check``, as far as patgate reads and writes them.

The fields and their numbers are those of Envoy's public API; all others of a call are skipped. Text is read as bytes,
because a header need not be UTF-8, and a map as the list of its entries, so that a key that occurs twice is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

_PACKAGE: Final = "patgate.ext_authz"
_OVERWRITE_IF_EXISTS_OR_ADD: Final = 2
_APPEND_IF_EXISTS_OR_ADD: Final = 0
_PERMISSION_DENIED: Final = 7
"""``google.rpc.Code``. Envoy asks only whether the code is 0."""


class _Field(NamedTuple):
    name: str
    number: int
    type: FieldDescriptorProto.Type.ValueType | str
    """A scalar type, or the name of a message."""
    repeated: bool = False


_BYTES: Final = FieldDescriptorProto.TYPE_BYTES
_STRING: Final = FieldDescriptorProto.TYPE_STRING
_INT32: Final = FieldDescriptorProto.TYPE_INT32
_BOOL: Final = FieldDescriptorProto.TYPE_BOOL
_ONE: Final = FieldDescriptorProto.LABEL_OPTIONAL
_MANY: Final = FieldDescriptorProto.LABEL_REPEATED

_MESSAGES: Final[dict[str, tuple[_Field, ...]]] = {
    # What Envoy sends.
    "CheckRequest": (_Field("attributes", 1, "Attributes"),),
    "Attributes": (
        _Field("source", 1, "Peer"),
        _Field("request", 4, "Request"),
        _Field("extensions", 10, "Entry", repeated=True),
    ),
    "Peer": (_Field("address", 1, "Address"),),
    "Address": (_Field("socket_address", 1, "SocketAddress"),),
    "SocketAddress": (_Field("address", 2, _BYTES),),
    "Request": (_Field("http", 2, "HttpRequest"),),
    "HttpRequest": (
        _Field("method", 2, _BYTES),
        _Field("headers", 3, "Entry", repeated=True),
        _Field("path", 4, _BYTES),
        _Field("host", 5, _BYTES),
        _Field("query", 7, _BYTES),
        _Field("fragment", 8, _BYTES),
        _Field("header_map", 13, "HeaderMap"),
    ),
    "Entry": (_Field("key", 1, _BYTES), _Field("value", 2, _BYTES)),
    "HeaderMap": (_Field("headers", 1, "RawHeader", repeated=True),),
    "RawHeader": (_Field("key", 1, _BYTES), _Field("value", 2, _BYTES), _Field("raw_value", 3, _BYTES)),
    # What it gets.
    "CheckResponse": (
        _Field("status", 1, "Status"),
        _Field("denied_response", 2, "Denied"),
        _Field("ok_response", 3, "Ok"),
    ),
    "Status": (_Field("code", 1, _INT32),),
    "Ok": (_Field("headers", 2, "HeaderOption", repeated=True), _Field("headers_to_remove", 5, _STRING, repeated=True)),
    "Denied": (
        _Field("status", 1, "HttpStatus"),
        _Field("headers", 2, "HeaderOption", repeated=True),
        _Field("body", 3, _STRING),
    ),
    "HttpStatus": (_Field("code", 1, _INT32),),
    "HeaderOption": (
        _Field("header", 1, "Header"),
        _Field("append_action", 3, _INT32),
        _Field("keep_empty_value", 4, _BOOL),
    ),
    "Header": (_Field("key", 1, _STRING), _Field("value", 2, _STRING)),
}


def _classes() -> dict[str, Any]:
    file = FileDescriptorProto(name="patgate/ext_authz.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = DescriptorProto(name=name)
        for field in fields:
            added = message.field.add(name=field.name, number=field.number, label=_ONE)
            if field.repeated:
                added.label = _MANY
            if isinstance(field.type, str):
                added.type = FieldDescriptorProto.TYPE_MESSAGE
                added.type_name = f".{_PACKAGE}.{field.type}"
            else:
                added.type = field.type
        file.message_type.append(message)
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES}


_CLASSES: Final = _classes()

Headers = Sequence[tuple[bytes, bytes]]


class MessageError(ValueError):
    """Bytes that are no ``CheckRequest``, or one that contradicts itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A request that Envoy asks about. Absent fields are empty.

    ``headers`` are in the order of the message, with the pseudo-headers of HTTP/2. ``joined``: several lines of one
    name are one entry, joined by commas; that is the form without ``encode_raw_headers``. ``source`` is the address of
    the client's connection, "" where it has none.
    """

    method: bytes
    target: bytes
    host: bytes
    query: bytes
    fragment: bytes
    source: bytes
    headers: Headers
    joined: bool
    extensions: Headers
    """The ``context_extensions`` of Envoy's own route."""


def read_call(data: bytes) -> Call:
    """The call in a ``CheckRequest``. Raises ``MessageError``."""
    try:
        message = _CLASSES["CheckRequest"].FromString(data)
    except DecodeError as error:
        raise MessageError("no CheckRequest") from error
    attributes = message.attributes
    http = attributes.request.http
    raw: list[tuple[bytes, bytes]] = []
    for each in http.header_map.headers:
        key, value, raw_value = each.key, each.value, each.raw_value
        if value and raw_value and value != raw_value:
            raise MessageError("a header with two values")
        raw.append((key, raw_value or value))
    return Call(
        method=http.method,
        target=http.path,
        host=http.host,
        query=http.query,
        fragment=http.fragment,
        source=attributes.source.address.socket_address.address,
        headers=[*raw, *((each.key, each.value) for each in http.headers)],
        joined=bool(http.headers),
        extensions=[(each.key, each.value) for each in attributes.extensions],
    )


def allowance(headers: Sequence[tuple[str, str]], removed: Sequence[str]) -> bytes:
    """A ``CheckResponse`` that lets the request pass with these headers, each in place of the client's."""
    message = _CLASSES["CheckResponse"]()
    message.status.code = 0
    ok = message.ok_response
    ok.SetInParent()
    for name, value in headers:
        _add(ok.headers, name, value, _OVERWRITE_IF_EXISTS_OR_ADD)
    ok.headers_to_remove.extend(removed)
    return bytes(message.SerializeToString())


def refusal(status: int, headers: Sequence[tuple[str, str]], body: str) -> bytes:
    """A ``CheckResponse`` with the response that the client gets; several headers may have one name."""
    message = _CLASSES["CheckResponse"]()
    message.status.code = _PERMISSION_DENIED
    denied = message.denied_response
    denied.status.code = status
    seen: set[str] = set()
    for name, value in headers:
        action = _APPEND_IF_EXISTS_OR_ADD if name.lower() in seen else _OVERWRITE_IF_EXISTS_OR_ADD
        seen.add(name.lower())
        _add(denied.headers, name, value, action)
    denied.body = body
    return bytes(message.SerializeToString())


def _add(options: Any, name: str, value: str, action: int) -> None:
    option = options.add(append_action=action, keep_empty_value=True)
    option.header.key, option.header.value = name, value
