"""Audit log operations: listing events, and verifying the chain of events."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from proxy.control.api.operation import Call, Method, NoBody, NoQuery, Operation, View, listing
from proxy.control.models import (
    ActorKindWord,
    Listing,
    PageQuery,
    Reference,
    RequestModel,
    ResponseModel,
    Time,
    checked,
)
from proxy.services.audit.filters import AuditFilter, read_address, read_mark, read_number
from proxy.services.audit.vocabulary import read_moment
from proxy.store.audit.queries import SortOrder

Level = Literal["account", "organisation"]
Outcome = Literal["done", "allowed", "refused", "failed", "reported"]
Moment = Annotated[
    str,
    checked(lambda text: read_moment(text, 0.0, "since")),
    Field(json_schema_extra={"anyOf": [{"format": "date-time"}, {"pattern": "^([0-9]{1,9}(ms|s|m|h|d|w))+$"}]}),
]
"""RFC 3339, or a duration before now."""
Address = Annotated[
    str, checked(read_address), Field(json_schema_extra={"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]})
]
MarkText = Annotated[
    str,
    checked(read_mark),
    Field(json_schema_extra={"pattern": "^[0-9]{1,15}:[0-9a-f]{64}$"}),
]
"""An event's number and hash."""
Number = Annotated[
    str, checked(read_number), Field(json_schema_extra={"pattern": "^(now|[0-9]{1,15})$"}, examples=["now", "1234"])
]


class EventQuery(PageQuery):
    """Filters for events; an event must match all of them."""

    order: Annotated[Literal["newest", "oldest"], Field(description="By time: newest or oldest first.")] = "newest"
    after: Annotated[
        Number | None,
        Field(
            description="Follow the log: list the events recorded after this event number, and always return a cursor. "
            "`now` is the newest event.",
        ),
    ] = None
    actor_kind: ActorKindWord | None = None
    actor: Annotated[Reference | None, Field(description="The actor: an id, or the public prefix of a token.")] = None
    actor_name: Annotated[Reference | None, Field(description="The name of the token that was the actor.")] = None
    user: Annotated[Reference | None, Field(description="The log of this user's account (email or id).")] = None
    level: Level | None = None
    action: Annotated[
        Reference | None,
        Field(
            description="The action; with a dot at its end, all actions that begin with it.", examples=["account.pat."]
        ),
    ] = None
    target: Annotated[Reference | None, Field(description="The target: an id, or the public prefix of a token.")] = None
    target_kind: Reference | None = None
    outcome: Outcome | None = None
    denied: Annotated[bool, Field(description="Only requests that were refused, or would have been.")] = False
    reason: Reference | None = None
    address: Address | None = None
    request: Annotated[Reference | None, Field(description="The id of a request or decision.")] = None
    since: Annotated[Moment | None, Field(description="From this time on, or from this long ago.")] = None
    until: Annotated[Moment | None, Field(description="Up to this time, or to this long ago.")] = None


class AuditQuery(EventQuery):
    """Filters for events, also by organisation."""

    org: Annotated[Reference | None, Field(description="Of this organisation (id or name).")] = None


class AuditEvent(ResponseModel):
    """An event. Names are those at the time of the event; `org` and `user` are the current ones."""

    number: int
    time: Time
    level: Level
    org_id: str | None
    org: str | None
    user_id: str | None
    user: str | None
    actor_kind: ActorKindWord
    actor_id: str | None
    actor_name: str | None
    action: str
    target_kind: str
    target_id: str | None
    target_name: str | None
    outcome: Outcome
    reason: str | None
    address: str | None
    request_id: str | None
    decision_id: str | None
    details: dict[str, Any]


class AuditEvents(Listing):
    """Events. A page may be empty and still have a next one, because a filter searches a bounded number at a time."""

    items: list[AuditEvent]


class Verification(RequestModel):
    """Where to continue, and the result of an earlier verification."""

    after: Annotated[MarkText | None, Field(description="`next` of the step before.")] = None
    head: Annotated[MarkText | None, Field(description="An event that must be unchanged.")] = None


class Verified(ResponseModel):
    """One step of a verification: how many events are intact, and the first one that is not."""

    events: int
    problem: Annotated[str | None, Field(description="The problem of the first event that is missing or altered.")]
    next: Annotated[MarkText | None, Field(description="Where the next step continues; null after the last one.")]
    head: Annotated[
        str, Field(description="The newest event: keep it elsewhere, and send it with the next verification.")
    ]


async def list_events(call: Call[NoBody, AuditQuery]) -> View:
    """Handle ``audit.list``."""
    return await _list(call, call.query, call.query.org)


async def list_events_of_org(call: Call[NoBody, EventQuery]) -> View:
    """Handle ``audit.list_of_org``."""
    return await _list(call, call.query, call.path["org"])


async def _list(call: Call[NoBody, Any], query: EventQuery, org: str | None) -> View:
    values = query.model_dump(exclude={"order", "after", "limit", "cursor", "count", "org"})
    page = await call.services.audit.list(
        call.actor,
        AuditFilter(org=org, **values),
        order=SortOrder(query.order),
        after=query.after,
        page=query.page,
    )
    return listing(page)


async def verify(call: Call[Verification, NoQuery]) -> View:
    """Handle ``audit.verify``."""
    return await call.services.audit.verify(call.actor, after=call.body.after, head=call.body.head)


OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(
        name="audit.list",
        method=Method.GET,
        path="/audit",
        summary="List events of the audit log",
        run=list_events,
        query=AuditQuery,
        answer=AuditEvents,
    ),
    Operation(
        name="audit.list_of_org",
        method=Method.GET,
        path="/orgs/{org}/audit",
        summary="List events of the log of an organisation",
        run=list_events_of_org,
        query=EventQuery,
        answer=AuditEvents,
    ),
    Operation(
        name="audit.verify",
        method=Method.POST,
        path="/audit/verify",
        summary="Verify a part of the chain of events",
        run=verify,
        body=Verification,
        answer=Verified,
    ),
)
