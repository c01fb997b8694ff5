"""The worker link's messages, as bytes: four bytes of length (big-endian), then that much UTF-8 JSON, one object.

Both ends are patgate, so anything unexpected is a defect or a foreign writer: WireError, and the link is closed.
A message is at most 16 MiB. A grant crosses as an object of exactly its fields; a digest as hex; sets as lists of
texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from proxy.core.errors import WireError
from proxy.core.model import Grant, Kind, OrgGrant, Reach, RefusedGrant, by_org
from proxy.core.permissions import PermissionSet
from proxy.core.reasons import Reason

MAX_MESSAGE: Final = 16 * 1024 * 1024
PREFIXES_AT_ONCE: Final = 64
"""How many prefixes one question may be about."""
_HEADER: Final = 4

Message = dict[str, Any]


def frame(message: Mapping[str, Any]) -> bytes:
    """One message as bytes; raises WireError if it is too large or not JSON."""
    try:
        body = json.dumps(message, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise WireError("a message for the worker link cannot be written as JSON") from None
    if len(body) > MAX_MESSAGE:
        raise WireError("a message for the worker link is larger than 16 MiB")
    return len(body).to_bytes(_HEADER, "big") + body


class Deframer:
    """Turns a stream of bytes, cut anywhere, into messages. After a WireError it takes no more."""

    __slots__ = ("_broken", "_buffer")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._broken = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """The messages that `data` completes, in order; raises WireError for a frame that is none."""
        if self._broken:
            raise WireError("the worker link has already failed")
        buffer = self._buffer
        buffer += data
        messages = []
        start = 0
        try:
            while len(buffer) - start >= _HEADER:
                size = int.from_bytes(buffer[start : start + _HEADER], "big")
                if size > MAX_MESSAGE:
                    raise WireError("a message on the worker link says it is larger than 16 MiB")
                end = start + _HEADER + size
                if len(buffer) < end:
                    break
                messages.append(_message(buffer[start + _HEADER : end]))
                start = end
        except WireError:
            self._broken = True
            buffer.clear()
            raise
        del buffer[:start]
        return messages


def _message(body: bytearray) -> Message:
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise WireError("a message on the worker link is not JSON") from None
    if not isinstance(value, dict):
        raise WireError("a message on the worker link is not an object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def grant_to_wire(grant: Grant) -> Message:
    """A grant as an object for `frame`."""
    return {
        "prefix": grant.prefix,
        "token_id": grant.token_id,
        "kind": grant.kind.value,
        "token_name": grant.token_name,
        "digest": None if grant.digest is None else grant.digest.hex(),
        "user_id": grant.user_id,
        "email": grant.email,
        "org_id": grant.org_id,
        "org_name": grant.org_name,
        "reach": grant.reach.value,
        "role": grant.role,
        "permissions": list(grant.permissions.texts),
        "scopes": None if grant.scopes is None else list(grant.scopes.texts),
        "expires_at": grant.expires_at,
        "depends": list(grant.depends),
        "orgs": None if grant.orgs is None else [_org_to_wire(org) for org in dict.fromkeys(grant.orgs.values())],
    }


def _org_to_wire(org: OrgGrant) -> Message:
    return {
        "org_id": org.org_id,
        "org_name": org.org_name,
        "role": org.role,
        "permissions": list(org.permissions.texts),
    }


def _org_from_wire(value: object) -> OrgGrant:
    fields = _fields(value, _ORG_FIELDS, "grant's organisation")
    return OrgGrant(
        org_id=_text(fields["org_id"]),
        org_name=_text(fields["org_name"]),
        role=_text(fields["role"]),
        permissions=PermissionSet.of(_texts(fields["permissions"])),
    )


def grant_from_wire(value: object) -> Grant:
    """The grant that `grant_to_wire` wrote; raises WireError for anything else."""
    fields = _fields(value, _GRANT_FIELDS, "grant")
    try:
        digest, scopes, expires_at = fields["digest"], fields["scopes"], fields["expires_at"]
        orgs = fields["orgs"]
        if orgs is not None and not isinstance(orgs, list):
            raise ValueError("not a list")
        return Grant(
            prefix=_text(fields["prefix"]),
            token_id=_text(fields["token_id"]),
            kind=Kind(_text(fields["kind"])),
            token_name=_text(fields["token_name"]),
            digest=None if digest is None else bytes.fromhex(_text(digest)),
            user_id=_text(fields["user_id"]),
            email=_text(fields["email"]),
            org_id=_text(fields["org_id"]),
            org_name=_text(fields["org_name"]),
            reach=Reach(_text(fields["reach"])),
            role=_text(fields["role"]),
            permissions=PermissionSet.of(_texts(fields["permissions"])),
            scopes=None if scopes is None else PermissionSet.of(_texts(scopes)),
            expires_at=None if expires_at is None else _seconds(expires_at),
            depends=_texts(fields["depends"]),
            orgs=None if orgs is None else by_org(map(_org_from_wire, orgs)),
        )
    except (ValueError, OverflowError):
        raise WireError("a grant on the worker link has a field of the wrong kind") from None


def refused_to_wire(refused: RefusedGrant) -> Message:
    """A refused grant as an object for `frame`."""
    return {"prefix": refused.prefix, "reason": refused.reason.value, "depends": list(refused.depends)}


def refused_from_wire(value: object) -> RefusedGrant:
    """The refused grant that `refused_to_wire` wrote; raises WireError for anything else, a reason of ALLOWED
    included.
    """
    fields = _fields(value, _REFUSED_FIELDS, "refused grant")
    try:
        reason = Reason(_text(fields["reason"]))
        if reason is Reason.ALLOWED:
            raise ValueError("a refusal that allows")
        return RefusedGrant(prefix=_text(fields["prefix"]), reason=reason, depends=_texts(fields["depends"]))
    except ValueError:
        raise WireError("a refused grant on the worker link has a field of the wrong kind") from None


_GRANT_FIELDS: Final = frozenset(Grant.__slots__)
_ORG_FIELDS: Final = frozenset(OrgGrant.__slots__)
_REFUSED_FIELDS: Final = frozenset(RefusedGrant.__slots__)


def _fields(value: object, names: frozenset[str], what: str) -> Message:
    if not isinstance(value, dict) or value.keys() != names:
        raise WireError(f"a {what} on the worker link does not have exactly its fields")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return tuple(_text(item) for item in value)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("not a time")
    return float(value)
