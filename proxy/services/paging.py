"""Pages of lists: cursors, the query for one page, and how many items follow it.

A count reads the rows that the next pages would list, with the same filter, so it shows nothing that the pages would
not show. It has an upper bound: a token that may list must not keep a reader of the store busy. Where a count takes
several queries (the audit log, policy violations), each has a transaction of its own.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from proxy.core.errors import Invalid
from proxy.store.records import Cursor

if TYPE_CHECKING:
    # Commands read the limits of this module; the caller would load the store.
    from proxy.services.caller import Caller

T = TypeVar("T")
U = TypeVar("U")
Row_co = TypeVar("Row_co", covariant=True)

LIMIT_DEFAULT: Final = 100
LIMIT_MOST: Final = 1000
COUNT_MOST: Final = 10_000
"""Items that are counted for a token or a key: about 0.1 s."""
COUNT_MOST_OPERATOR: Final = 250_000
"""Items that are counted for the operator: at most some seconds, of one reader."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageRequest:
    """Which page of a list: at most ``limit`` items, from the ``cursor`` that the page before returned.

    ``count`` also requests how many items follow the page.
    """

    limit: int = LIMIT_DEFAULT
    cursor: str | None = None
    count: bool = False

    def check(self) -> None:
        """Raise Invalid for a limit outside 1 to 1000, and for a cursor that ``write_cursor`` did not write."""
        check_limit(self.limit)
        read_cursor(self.cursor)


FIRST_PAGE: Final = PageRequest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Remaining:
    """How many items follow a page: ``count`` of them, or at least so many where not ``exact``."""

    count: int
    exact: bool


NOTHING_MORE: Final = Remaining(count=0, exact=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[T]):
    """Some items of a list.

    ``next_cursor`` requests the next page and is None at the end. ``remaining`` is None unless requested.
    """

    items: Sequence[T]
    next_cursor: str | None
    remaining: Remaining | None = None

    def with_items(self, items: Sequence[U]) -> Page[U]:
        """The same page of other items: the views of its rows."""
        return Page(items=items, next_cursor=self.next_cursor, remaining=self.remaining)


class PageQuery(Protocol[Row_co]):
    """A query of the store: the first ``limit`` rows that follow ``after``."""

    def __call__(self, *, after: Cursor | None, limit: int) -> Awaitable[Sequence[Row_co]]:
        """At most ``limit`` rows, in the order of the list."""
        ...


def row_position(row: Any) -> Cursor:
    """The position in its list of a row with a time of creation and an id."""
    return Cursor(created_at=row.created_at, id=row.id)


async def read_page(
    request: PageRequest,
    caller: Caller,
    query: PageQuery[T],
    count_behind: Callable[[Cursor, int], Awaitable[int]],
    position: Callable[[T], Cursor] = row_position,
) -> Page[T]:
    """The rows of the requested page. Raises Invalid as ``PageRequest.check`` does.

    ``count_behind`` gets the position of the last row and the number at which it stops counting.
    """
    limit = check_limit(request.limit)
    rows = await query(after=read_cursor(request.cursor), limit=limit + 1)
    last = position(rows[limit - 1]) if len(rows) > limit else None
    left = await _remaining(caller, last, count_behind) if request.count else None
    return Page(items=rows[:limit], next_cursor=write_cursor(last), remaining=left)


async def _remaining(
    caller: Caller, last: Cursor | None, count_behind: Callable[[Cursor, int], Awaitable[int]]
) -> Remaining:
    if last is None:
        return NOTHING_MORE
    most = COUNT_MOST_OPERATOR if caller.operator else COUNT_MOST
    found = await count_behind(last, most + 1)
    return Remaining(count=min(found, most), exact=found <= most)


def write_cursor(last: Cursor | None) -> str | None:
    """A cursor that requests what follows ``last``; None at the end of a list."""
    if last is None:
        return None
    return base64.urlsafe_b64encode(json.dumps([last.created_at, last.id]).encode()).rstrip(b"=").decode("ascii")


def read_cursor(text: str | None) -> Cursor | None:
    """The inverse of ``write_cursor``. Raises Invalid for a text that it did not write."""
    if text is None:
        return None
    try:
        created_at, row_id = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise Invalid("cursor", "this is not a cursor of this list") from None
    if type(created_at) is not float or not math.isfinite(created_at) or type(row_id) is not str:
        raise Invalid("cursor", "this is not a cursor of this list")
    return Cursor(created_at=created_at, id=row_id)


def check_limit(limit: int) -> int:
    """The page size itself. Raises Invalid outside 1 to 1000."""
    if not 1 <= limit <= LIMIT_MOST:
        raise Invalid("limit", f"a page has 1 to {LIMIT_MOST} rows")
    return limit
