"""The fence: errors of SQLAlchemy and of the database become errors of the product here, once, and nowhere else.

1. A violated constraint is a ``Conflict``: another change came first.
2. Everything else that the database reports (full disk, locked or damaged file, I/O error, lost connection, no free
   connection in time) is ``StoreUnavailable``, which may be retried.
3. No statement and no parameter enters an error's text: parameters hold hashes and addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from proxy.core.errors import Conflict, StoreUnavailable

_OF_SQLALCHEMY: Final = (sa.exc.DBAPIError, sa.exc.TimeoutError, sa.exc.ResourceClosedError)


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverErrors:
    """The errors of one database's driver: their base classes, and the cause of one in words ("" if unknown)."""

    raised: tuple[type[Exception], ...]
    cause: Callable[[Exception], str]


def _cause(error: BaseException, driver: DriverErrors) -> str:
    original = getattr(error, "orig", None) or error
    seen: set[int] = set()
    while isinstance(original, BaseException) and id(original) not in seen:
        seen.add(id(original))
        if isinstance(original, driver.raised):
            return driver.cause(original)
        if isinstance(original, sa.exc.TimeoutError):
            return "all its connections are busy"
        if original.__cause__ is None:
            break
        original = original.__cause__
    return ""


@contextmanager
def mapped(driver: DriverErrors) -> Iterator[None]:
    """Raise what the body raises, mapped by the rules above."""
    raised: tuple[type[Exception], ...] = (*_OF_SQLALCHEMY, *driver.raised)
    try:
        yield
    except sa.exc.IntegrityError as error:
        raise Conflict("the change contradicts what is stored meanwhile") from error
    except raised as error:
        cause = _cause(error, driver)
        because = f" because {cause}" if cause else ""
        raise StoreUnavailable(f"the store cannot be used now{because}") from error
