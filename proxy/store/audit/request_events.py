"""Appending request events to the audit log: looks up the actor of each in the store.

Rules:

1. A token is the actor only if the store has it under the presented prefix, or if it was verified when it was used. An
   unknown prefix that was only claimed is stored in the details, and the actor is the system.
2. The event is on the log of the token's owner, and of the organisation that was touched or, if none is known, of the
   token's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.model import ActorKind
from proxy.store import tables
from proxy.store.audit.chain import Appended, Event, Mark, Occurred, append_many

_T = tables.tokens
_SYSTEM = (ActorKind.SYSTEM.value, "", "")


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestEvent:
    """The event of a request, before its actor is looked up; ``at`` in unix seconds.

    ``prefix`` is the public prefix that was presented ("" for none), ``proven`` whether the whole token was verified.
    ``actor`` (kind, id, name) is the sender if it is known already.
    """

    event: Event
    prefix: str
    proven: bool
    at: float
    actor: tuple[str, str, str] | None = None


class _Known(NamedTuple):
    """A stored token: its name, its owner and its organisation."""

    name: str
    user_id: str
    org_id: str


async def append(
    connection: AsyncConnection, events: Sequence[RequestEvent], *, written: Mark | None = None
) -> Appended | None:
    """Append the events to the audit log, in this order (``chain.append_many``)."""
    ids = {_id(event.prefix) for event in events if event.prefix}
    query = sa.select(_T.c.prefix, _T.c.name, _T.c.user_id, _T.c.org_id).where(_T.c.id.in_(ids))
    rows = (await connection.execute(query)).all() if ids else []
    known = {prefix: _Known(name, user_id or "", org_id or "") for prefix, name, user_id, org_id in rows}
    occurred = [_attributed(event, known.get(event.prefix)) for event in events]
    return await append_many(connection, occurred, written=written)


def _attributed(one: RequestEvent, token: _Known | None) -> Occurred:
    event = one.event
    if one.actor is not None:
        return Occurred(event=event, actor=one.actor, at=one.at)
    if token is not None:
        actor = (_kind(one.prefix), _id(one.prefix), token.name)
        event = replace(event, user_id=token.user_id, org_id=event.org_id or token.org_id)
    elif one.proven and one.prefix:
        actor = (_kind(one.prefix), _id(one.prefix), "")
    else:
        actor = _SYSTEM
        if one.prefix:
            event = replace(event, details={**event.details, "token": one.prefix})
    return Occurred(event=event, actor=actor, at=one.at)


def _id(prefix: str) -> str:
    return prefix.rpartition("_")[2]


def _kind(prefix: str) -> str:
    return prefix.rpartition("_")[0].rpartition("_")[2]
