"""The fence: errors of SQLAlchemy and of the database become errors of the product here, once, and nowhere else.

1. A violated constraint is a ``Conflict``: another change came first.
2. A value that the database cannot hold (a text with a NUL character, a lone surrogate, or too long) is ``Invalid``: a
   retry would fail again. SQLite holds them all.
3. Everything else that the database reports (full disk, locked or damaged file, I/O error, lost connection, no free
   connection in time) is ``StoreUnavailable``, which may be retried.
4. No statement and no parameter enters an error's text: parameters hold hashes and addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from proxy.core.errors import Conflict, Invalid, StoreUnavailable

_OF_SQLALCHEMY: Final = (sa.exc.DBAPIError, sa.exc.TimeoutError, sa.exc.ResourceClosedError)


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverErrors:
    """The errors of one database's driver, by their base classes.

    ``cause`` is the cause of one in words, ``value`` what is wrong with a value that the database cannot hold; both are
    "" if that is unknown or not so.
    """

    raised: tuple[type[Exception], ...]
    cause: Callable[[Exception], str]
    value: Callable[[Exception], str] = lambda _error: ""


def _original(error: BaseException, driver: DriverErrors) -> Exception | None:
    """The driver's own error behind one of SQLAlchemy."""
    found = getattr(error, "orig", None) or error
    seen: set[int] = set()
    while isinstance(found, BaseException) and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, (*driver.raised, sa.exc.TimeoutError)):
            return found  # type: ignore[return-value]
        found = found.__cause__
    return None


@contextmanager
def mapped(driver: DriverErrors) -> Iterator[None]:
    """Raise what the body raises, mapped by the rules above."""
    raised: tuple[type[Exception], ...] = (*_OF_SQLALCHEMY, *driver.raised)
    try:
        yield
    except sa.exc.IntegrityError as error:
        raise Conflict("the change contradicts what is stored meanwhile") from error
    except raised as error:
        original = _original(error, driver)
        if original is not None and (problem := driver.value(original)):
            # Not the cause: it repeats the value.
            raise Invalid("text", problem) from None
        raise StoreUnavailable(f"the store cannot be used now{_because(original, driver)}") from error


def _because(original: Exception | None, driver: DriverErrors) -> str:
    if original is None:
        return ""
    busy = isinstance(original, sa.exc.TimeoutError)
    cause = "all its connections are busy" if busy else driver.cause(original)
    return f" because {cause}" if cause else ""
