"""The fence: errors of SQLAlchemy and of the database become errors of the product here, once, and nowhere else.

1. A constraint that did not hold is a ``Conflict``: somebody else was first.
2. Everything else that the database says (full disk, locked or damaged file, I/O error, lost connection, no free
   connection in time) is ``StoreUnavailable``, which may be tried again.
3. No statement and no parameter enters an error's text: parameters hold hashes and addresses.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa

from proxy.core.errors import Conflict, StoreUnavailable

# Primary result codes of SQLite, https://www.sqlite.org/rescode.html; the low byte of an extended code.
_SQLITE_CAUSES: Final = {
    5: "another process holds its lock",
    6: "another process holds its lock",
    8: "it can only be read",
    10: "of a disk I/O error",
    11: "it is damaged",
    13: "its disk is full",
    14: "it cannot be opened",
    26: "it is not a database",
}
# Where the index beside the log could not be given its size: it is always the disk that has no room for it.
_NO_ROOM_FOR_INDEX: Final = 4874


def _cause(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    seen: set[int] = set()
    while isinstance(original, BaseException) and id(original) not in seen:
        seen.add(id(original))
        if isinstance(original, sqlite3.Error):
            # Errors that the driver raises by itself, such as for a closed connection, have no code.
            code = getattr(original, "sqlite_errorcode", None)
            if code == _NO_ROOM_FOR_INDEX:
                code = 13
            return "" if code is None else _SQLITE_CAUSES.get(code & 0xFF, "")
        if isinstance(original, sa.exc.TimeoutError):
            return "all its connections are busy"
        if original.__cause__ is None:
            break
        original = original.__cause__
    return ""


@contextmanager
def mapped() -> Iterator[None]:
    """Raise what the body raises, mapped by the rules above."""
    try:
        yield
    except sa.exc.IntegrityError as error:
        raise Conflict("the change contradicts what is stored meanwhile") from error
    except (sa.exc.DBAPIError, sa.exc.TimeoutError, sa.exc.ResourceClosedError, sqlite3.Error) as error:
        cause = _cause(error)
        because = f" because {cause}" if cause else ""
        raise StoreUnavailable(f"the store cannot be used now{because}") from error
