"""Wire format of the worker link: four bytes of length (big-endian), then one JSON object of that length in UTF-8.

Both ends are patgate, so unexpected input is a defect or another writer: WireError, and the link is closed. A message
is at most 16 MiB. A grant is an object with exactly its fields; digests are hex, permission sets lists of texts. If
several organisations of a grant have the same permission set, the set is sent once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from proxy.core.errors import WireError
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Grant, OrgGrant, RefusedGrant, by_org
from proxy.core.networks import AddressRanges
from proxy.core.permissions import PermissionSet
from proxy.core.reasons import Reason

MAX_MESSAGE: Final = 16 * 1024 * 1024
PREFIXES_AT_ONCE: Final = 64
"""Most prefixes in one request to the authority."""
_HEADER: Final = 4

_SEVERAL: Final = frozenset((Reach.ACCOUNT, Reach.ORGS))

Message = dict[str, Any]


def frame(message: Mapping[str, Any]) -> bytes:
    """A message in wire format; raises WireError if it is too large or not JSON."""
    try:
        body = json.dumps(message, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise WireError("a message for the worker link cannot be written as JSON") from None
    return frame_body(body)


def frame_body(body: bytes) -> bytes:
    """A message that is already UTF-8 JSON in wire format; raises WireError if it is too large."""
    if len(body) > MAX_MESSAGE:
        raise WireError("a message for the worker link is larger than 16 MiB")
    return len(body).to_bytes(_HEADER, "big") + body


class Deframer:
    """Splits a byte stream, received in any pieces, into messages. After a WireError it raises for all input."""

    __slots__ = ("_broken", "_buffer")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._broken = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """The messages that ``data`` completes, in order; raises WireError for an invalid frame."""
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
    """A grant as a JSON object."""
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
        "orgs": None if grant.orgs is None else _orgs_to_wire(grant.orgs.values()),
        "ranges": None if grant.ranges is None else list(grant.ranges.texts),
    }


def texts_of(grant: Grant) -> int:
    """The approximate number of texts in a grant's wire form, which limits the number of grants in a message."""
    count = len(grant.permissions) + len(grant.scopes or ()) + len(grant.ranges or ())
    if grant.orgs is not None:
        # For each organisation, which is in ``orgs`` twice: three texts and three dependency keys.
        count += 3 * len(grant.orgs) + sum(map(len, {org.permissions for org in grant.orgs.values()}))
    return count


def _orgs_to_wire(values: Iterable[OrgGrant]) -> Message:
    # ``orgs`` has each organisation twice, by id and by name.
    orgs = {org.org_id: org for org in values}
    sets = {org.permissions: 0 for org in orgs.values()}
    for place, held in enumerate(sets):
        sets[held] = place
    return {
        "sets": [list(held.texts) for held in sets],
        "orgs": [[org.org_id, org.org_name, org.role, sets[org.permissions]] for org in orgs.values()],
    }


def _orgs_from_wire(value: object) -> dict[str, OrgGrant]:
    fields = _fields(value, _ORGS_FIELDS, "grant's organisations")
    sets, orgs = fields["sets"], fields["orgs"]
    if not isinstance(sets, list) or not isinstance(orgs, list):
        raise ValueError("not a list")
    permissions = [PermissionSet.of(_texts(texts)) for texts in sets]
    return by_org(_org_from_wire(org, permissions) for org in orgs)


def _org_from_wire(value: object, sets: list[PermissionSet]) -> OrgGrant:
    if not isinstance(value, list) or len(value) != len(OrgGrant.__slots__):
        raise ValueError("not an organisation")
    place = value[3]
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(sets):
        raise ValueError("not the place of a set")
    return OrgGrant(org_id=_text(value[0]), org_name=_text(value[1]), role=_text(value[2]), permissions=sets[place])


def _checked(grant: Grant) -> Grant:
    """The grant, if its organisations fit its reach, as ``decide`` requires; raises ValueError."""
    if (grant.orgs is not None) != (grant.reach in _SEVERAL):
        raise ValueError("organisations that do not fit the reach")
    if grant.reach is Reach.ORGS and grant.permissions:
        raise ValueError("permissions outside the organisations")
    return grant


def grant_from_wire(value: object) -> Grant:
    """The grant from the result of ``grant_to_wire``; raises WireError for all else."""
    fields = _fields(value, _GRANT_FIELDS, "grant")
    try:
        digest, scopes, expires_at = fields["digest"], fields["scopes"], fields["expires_at"]
        orgs, ranges = fields["orgs"], fields["ranges"]
        grant = Grant(
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
            orgs=None if orgs is None else _orgs_from_wire(orgs),
            ranges=None if ranges is None else AddressRanges.of(_texts(ranges)),
        )
        return _checked(grant)
    except (ValueError, OverflowError):
        raise WireError("a grant on the worker link has an invalid field") from None


def refused_to_wire(refused: RefusedGrant) -> Message:
    """A refused grant as a JSON object."""
    return {"prefix": refused.prefix, "reason": refused.reason.value, "depends": list(refused.depends)}


def refused_from_wire(value: object) -> RefusedGrant:
    """The refused grant from the result of ``refused_to_wire``; raises WireError for all else, and for ALLOWED."""
    fields = _fields(value, _REFUSED_FIELDS, "refused grant")
    try:
        reason = Reason(_text(fields["reason"]))
        if reason is Reason.ALLOWED:
            raise ValueError("a refusal that allows")
        return RefusedGrant(prefix=_text(fields["prefix"]), reason=reason, depends=_texts(fields["depends"]))
    except ValueError:
        raise WireError("a refused grant on the worker link has an invalid field") from None


_GRANT_FIELDS: Final = frozenset(Grant.__slots__)
_ORGS_FIELDS: Final = frozenset(("sets", "orgs"))
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
