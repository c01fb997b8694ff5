"""Node operations: listing the nodes of the store, and accepting a store that this node refuses."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from proxy.control.api.operation import Call, DictView, Method, NoBody, NoQuery, Operation, View, listing
from proxy.control.models import Listing, ResponseModel, Time
from proxy.services.paging import Page

ACCEPT_SECONDS: Final = 90.0
"""An acceptance waits until every lease of at most 60 seconds is over."""


class StoreNode(ResponseModel):
    """A node of the store. `lease` is its length, `lease_seconds` the rest of it. `self`: the node that answers."""

    id: str
    name: str
    version: str
    schema_: Annotated[str, Field(alias="schema")]
    applied: int
    lease: float
    lease_seconds: float
    started_at: Time
    config_hash: str
    config_matches: bool
    self: bool


class Nodes(Listing):
    """All nodes, the oldest first, on one page."""

    items: list[StoreNode]


class Accepted(ResponseModel):
    """The store is accepted, and the node serves again within a second."""

    accepted: bool


async def list_nodes(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``nodes.list``."""
    return listing(Page(items=await call.services.nodes.list(call.actor), next_cursor=None))


async def accept(call: Call[NoBody, NoQuery]) -> View:
    """Handle ``nodes.accept``."""
    await call.services.nodes.accept(call.actor)
    return DictView(members={"accepted": True})


OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    Operation(
        name="nodes.list",
        method=Method.GET,
        path="/nodes",
        summary="List the nodes of the store",
        run=list_nodes,
        answer=Nodes,
    ),
    Operation(
        name="nodes.accept",
        method=Method.POST,
        path="/nodes/accept",
        summary="Accept the store that this node refuses",
        run=accept,
        answer=Accepted,
        conflicts=True,
        seconds=ACCEPT_SECONDS,
    ),
)
