"""Requirements: the operation that a forward-auth call names itself, for an ingress whose routes already know it.

``entity=things&operation=update`` with ``id=…`` and ``org=…`` if known, in the query of the call's URL or in its path.

Rules of this module:
1. ``entity`` and ``operation`` are required, every key occurs at most once, and no other key is known. A value is
   plain: no escapes, no wildcard. Anything else is refused, never ignored, in the path of a call and in a query that
   only the ingress can write. A query that a client may have written (``Shape.fixed_query`` False) is not read.
2. The requirement replaces the entity, id and operation of the route that matches the target, and may add an
   organisation; it never replaces the route's. The grant decides as always: role ∧ scopes ∧ organisation.
3. The target is still checked and routed: an ambiguous one is refused, and so is a route with access ``denied``. A
   route that is open without a token needs one here, because the ingress says what the request needs.
4. Where no route matches, the requirement alone decides.
5. No function here raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from proxy.core.model import Access
from proxy.core.reasons import Reason
from proxy.core.routes import Match, Route

_PAIR: Final = re.compile(rb"(entity|operation|id|org)=([A-Za-z0-9][A-Za-z0-9._~@:-]{0,254})")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST: Final = 4
_TOKEN: Final = Access.TOKEN

UNROUTED: Final = Route(index=-1, path="/**", name="-", host="")
"""The route of a request that no route matches and that a requirement decides. It has no upstream.

``host`` is not None, because the request's host may be why no route matches.
"""

REDACTED: Final = "[redacted]"
"""A value of a logged requirement that may be a secret."""
TEXT_LIMIT: Final = len("entity=&operation=&id=&org=") + 2 * 64 + 2 * 255
"""The most characters of a logged requirement."""


class Requirement(NamedTuple):
    """What a request needs, by its ingress."""

    entity: str
    operation: str
    entity_id: str | None
    org: str | None


def read_requirement(text: bytes) -> Requirement | None:
    """The requirement in ``key=value`` pairs, joined by ``&``; None if it is invalid (rule 1)."""
    values: dict[str, str] = {}
    pairs = text.split(b"&", _MOST)
    for pair in pairs:
        matched = _PAIR.fullmatch(pair)
        if matched is None:
            return None
        values[matched[1].decode("ascii")] = matched[2].decode("ascii")
    entity, operation = values.get("entity"), values.get("operation")
    if len(values) != len(pairs) or entity is None or operation is None:
        return None
    if _NAME.fullmatch(entity) is None or _NAME.fullmatch(operation) is None:
        return None
    return Requirement(entity, operation, values.get("id"), values.get("org"))


def logged_text(requirement: Requirement, redact: Callable[[str], str]) -> str:
    """The requirement as in a URL, for the audit log. A value that ``redact`` changes is ``REDACTED``."""
    entity, operation, entity_id, org = requirement
    pairs = (("entity", entity), ("operation", operation), ("id", entity_id), ("org", org))
    return "&".join(
        [f"{key}={value if redact(value) == value else REDACTED}" for key, value in pairs if value is not None]
    )


def read_logged(text: str) -> Requirement | None:
    """The requirement in the audit log, with the word ``redacted`` for a redacted value; None if it is invalid."""
    if len(text) > TEXT_LIMIT or not text.isascii():
        return None
    return read_requirement(text.replace(REDACTED, REDACTED[1:-1]).encode("ascii"))


def required(
    requirement: Requirement, match: Match | None, reason: Reason | None
) -> tuple[Match | None, Reason | None]:
    """The match to judge a request by, and why it is refused already, from what ``judge`` found (rules 2 to 4)."""
    entity, operation, entity_id, org = requirement
    if reason is Reason.NO_ROUTE:
        return Match(UNROUTED, entity, entity_id, operation, org), None
    if reason is not None or match is None:
        return match, reason
    route = match.route
    if org is not None and match.org is not None and org != match.org:
        return match, Reason.ORG_MISMATCH
    if route.access is not _TOKEN:
        route = replace(route, access=_TOKEN)
    return Match(route, entity, entity_id, operation, match.org if org is None else org), None
