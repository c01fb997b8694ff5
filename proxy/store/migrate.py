"""Migrating the schema to the newest revision, at start.

The version is one row that Alembic maintains. It is read directly, so that an up-to-date store starts without importing
Alembic. All steps run in the transaction of the caller: a crash leaves the old schema intact. Of several nodes that
start together one migrates: the version is read after the lock of those who open the store (``Dialect.lock_schema``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.errors import StoreNewerSchema
from proxy.store import dialects
from proxy.store.nodes import history
from proxy.store.nodes.records import Remembered, StoreState

REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Every revision that this version knows, oldest first. A test compares them with the scripts."""

Look = Callable[[Remembered | None], Awaitable[StoreState]]
"""What the store is like, for the one who remembers another state of it (``nodes.history.seen``)."""
BeforeMigration = Callable[[str | None, Look], Awaitable[None]]
"""Called with the revision that was found (None: an empty database), before anything is written; may refuse it."""
SCRIPTS: Final = Path(__file__).parent / "migrations"
_VERSION: Final = sa.table("alembic_version", sa.column("version_num", sa.String))


async def version(connection: AsyncConnection) -> str | None:
    """The revision of the schema; ``None`` for an empty database."""
    if not await connection.run_sync(lambda sync: sa.inspect(sync).has_table(_VERSION.name)):
        return None
    return (await connection.execute(sa.select(_VERSION.c.version_num))).scalar_one_or_none()


async def run(connection: AsyncConnection, before: BeforeMigration | None = None) -> None:
    """Migrate to the newest revision, inside the transaction of ``connection``, which the caller commits.

    Other processes that open the store wait until then. ``before`` is called if there is something to do.

    Raises what ``before`` raises, and StoreNewerSchema for a revision that this version does not know.
    """
    await dialects.of_connection(connection).lock_schema(connection)
    found = await version(connection)
    if found == REVISIONS[-1]:
        return
    if found is not None and found not in REVISIONS:
        raise StoreNewerSchema("the store was written by a newer version of patgate: install that version or newer")
    if before is not None:
        await before(found, partial(history.seen, connection))
    await connection.run_sync(_upgrade)


def _upgrade(connection: sa.Connection) -> None:
    # Imported here: most starts need no migration, and Alembic costs a tenth of a second.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
