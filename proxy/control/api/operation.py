"""API operations as values: an ``Operation`` is one row of the table (``operations.py``).

The routes of both listeners, the validation of requests and the OpenAPI document are all built from it. A handler
gets a ``Call``, whose shape is validated, and returns a view of the services; it reads no request and writes no
response.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from proxy.control.models import Query, RequestModel, ResponseModel
from proxy.core.model import Actor
from proxy.services.factory import Services
from proxy.services.idempotency import IdempotencyKey
from proxy.services.paging import Page


class Method(StrEnum):
    """HTTP methods; HEAD is served for every GET."""

    GET = "GET"
    POST = "POST"
    PATCH = "PATCH"
    PUT = "PUT"
    DELETE = "DELETE"


class NoBody(RequestModel):
    """An action without parameters: an empty body or an empty object."""


class NoQuery(Query):
    """An operation without parameters in the query."""


B = TypeVar("B", bound=RequestModel)
Q = TypeVar("Q", bound=Query)


class View(Protocol):
    """A result of the services."""

    def as_dict(self) -> dict[str, object]:
        """The JSON document."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Call(Generic[B, Q]):
    """One validated request: its caller, body, query and path parameters.

    ``path`` has the values of the path's parameters, unescaped. ``idempotency_key`` is the client's, for an
    operation that creates something.
    """

    services: Services
    actor: Actor
    body: B
    query: Q
    path: Mapping[str, str]
    idempotency_key: IdempotencyKey | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DictView:
    """A view made from a dictionary."""

    members: dict[str, object]

    def as_dict(self) -> dict[str, object]:
        """The dictionary."""
        return self.members


def listing(page: Page[Any]) -> DictView:
    """The view of one page of a list."""
    items = [view.as_dict() for view in page.items]
    members: dict[str, object] = {"items": items, "next_cursor": page.next_cursor}
    if page.remaining is not None:
        members |= {"remaining": page.remaining.count, "remaining_exact": page.remaining.exact}
    return DictView(members=members)


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation(Generic[B, Q]):
    """One method of one path.

    ``name`` is the operationId: noun and verb. ``path`` is below ``/api/v1``; its parameters are in ``PARAMETERS``.
    ``conflicts``: it may be refused with 409. ``secret``: the response has a token's value. ``creates``: it takes an
    ``Idempotency-Key``. ``seconds``: it is cancelled after this time, and what is not committed is undone. ``tag``
    groups operations in the document.
    """

    name: str
    method: Method
    path: str
    summary: str
    run: Callable[[Call[B, Q]], Awaitable[View]]
    answer: type[ResponseModel]
    body: type[B] = NoBody  # type: ignore[assignment]  # the default
    query: type[Q] = NoQuery  # type: ignore[assignment]  # the default
    status: int = 200
    conflicts: bool = False
    secret: bool = False
    creates: bool = False
    seconds: float = 30.0

    @property
    def tag(self) -> str:
        """The noun of the name."""
        return self.name.partition(".")[0]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the path's parameters, in order."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))

    @property
    def takes_body(self) -> bool:
        """Whether requests have a body."""
        return self.method in (Method.POST, Method.PUT, Method.PATCH)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """A path parameter; ``pattern`` is a regular expression that means the same in Python and ECMAScript."""

    pattern: str
    longest: int
    description: str
    missing: str
    """The message for a value that nothing can have: the same as when nothing has it."""


PARAMETERS: Mapping[str, Parameter] = {
    "token": Parameter(
        pattern="^[0-9A-Za-z_]+$",
        longest=64,
        description="A token's id, or its public prefix.",
        missing="there is no token with this id or prefix",
    ),
    "key": Parameter(
        pattern="^[0-9A-Za-z_]+$",
        longest=64,
        description="A key's id, or its public prefix.",
        missing="there is no token with this id or prefix",
    ),
    "user": Parameter(
        pattern="^[^\\s/]+$",
        longest=320,
        description="A user's id or email.",
        missing="there is no user with this email or id",
    ),
    "org": Parameter(
        pattern="^[0-9A-Za-z_-]+$",
        longest=63,
        description="An organisation's id or name.",
        missing="there is no organisation with this name or id",
    ),
    "invitation": Parameter(
        pattern="^[0-9A-Za-z_]+$",
        longest=32,
        description="An invitation's id.",
        missing="there is no open invitation with this id",
    ),
    "role": Parameter(
        pattern="^[0-9A-Za-z][0-9A-Za-z._-]*$",
        longest=128,
        description="A role's name.",
        missing="there is no role of this name",
    ),
}
