"""The audit log: what happened, and whether what it says is what was written."""

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
    """Which events of a log: those for which all of this holds."""

    order: Annotated[Literal["newest", "oldest"], Field(description="By time, from which end.")] = "newest"
    after: Annotated[
        Number | None,
        Field(
            description="List what was recorded after this event, by number, and always say where to go on: to follow "
            "the log. `now` stands for the newest event.",
        ),
    ] = None
    actor_kind: ActorKindWord | None = None
    actor: Annotated[Reference | None, Field(description="Who did it: an id, or the public prefix of a token.")] = None
    actor_name: Annotated[Reference | None, Field(description="The name of the token that did it.")] = None
    user: Annotated[Reference | None, Field(description="Whose account's log (email or id).")] = None
    level: Level | None = None
    action: Annotated[
        Reference | None,
        Field(description="What was done; with a dot at its end, all that begins so.", examples=["account.pat."]),
    ] = None
    target: Annotated[Reference | None, Field(description="To what: an id, or the public prefix of a token.")] = None
    target_kind: Reference | None = None
    outcome: Outcome | None = None
    denied: Annotated[bool, Field(description="Only what was refused, or would have been.")] = False
    reason: Reference | None = None
    address: Address | None = None
    request: Annotated[Reference | None, Field(description="The id of a request or decision.")] = None
    since: Annotated[Moment | None, Field(description="From this time on, or from so long before now.")] = None
    until: Annotated[Moment | None, Field(description="Up to this time, or to so long before now.")] = None


class AuditQuery(EventQuery):
    """Which events."""

    org: Annotated[Reference | None, Field(description="Of this organisation (id or name).")] = None


class AuditEvent(ResponseModel):
    """Something that happened.  Names are those of then; `org` and `user` are those of now."""

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
    """Events.  A page may be empty and still have a next one: filters are looked through a bounded way at a time."""

    items: list[AuditEvent]


class Verification(RequestModel):
    """Where to go on, and what an earlier verification ended with."""

    after: Annotated[MarkText | None, Field(description="`next` of the step before.")] = None
    head: Annotated[MarkText | None, Field(description="An event that must be the same still.")] = None


class Verified(ResponseModel):
    """One step of a verification: how many events hold, and the first one that does not."""

    events: int
    problem: Annotated[str | None, Field(description="What is wrong with the first event that is gone or altered.")]
    next: Annotated[MarkText | None, Field(description="Where the next step goes on; null where it is over.")]
    head: Annotated[str, Field(description="The newest event when it was asked: keep it elsewhere, and ask with it.")]


async def list_events(call: Call[NoBody, AuditQuery]) -> View:
    return await _list(call, call.query, call.query.org)


async def list_events_of_org(call: Call[NoBody, EventQuery]) -> View:
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
        summary="Check a part of the chain of events",
        run=verify,
        body=Verification,
        answer=Verified,
    ),
)
