"""How many items a list has behind a page.

A count reads the rows that the next pages would list, with the same filter; so it shows nothing that the pages would
not show. It ends at a bound: a token that may list must not keep a reader of the store busy. Where it takes several
queries (the audit log, policy violations), each has a transaction of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from proxy.services.caller import Caller
from proxy.services.views import NOTHING_MORE, Remaining
from proxy.store.records import Cursor

COUNT_MOST: Final = 10_000
"""Items that are counted for a token or a key: about 0.1 s."""
COUNT_MOST_OPERATOR: Final = 250_000
"""Items that are counted for the operator: at most some seconds, of one reader."""


async def remaining(
    asker: Caller, last: Cursor | None, count_behind: Callable[[Cursor, int], Awaitable[int]]
) -> Remaining:
    """How many items ``count_behind`` finds behind the ``last`` of a page; ``None``: the list ends there.

    ``count_behind`` gets the position and a limit, at which it stops counting.
    """
    if last is None:
        return NOTHING_MORE
    most = COUNT_MOST_OPERATOR if asker.operator else COUNT_MOST
    found = await count_behind(last, most + 1)
    return Remaining(count=min(found, most), exact=found <= most)
