"""A change whose audit event cannot be written is refused as a whole, and existing tokens keep working."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from proxy.core.errors import StoreUnavailable
from proxy.core.model import Grant
from proxy.store import tables
from tests.contract.kit import ADMIN, Kit, by_itself, opened

ANN = "ann@example.org"


async def _ddl(directory: Path, *statements: str) -> None:
    async with by_itself(directory) as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


_CHANGES: dict[str, Callable[[Kit, str], Awaitable[object]]] = {
    "mint": lambda kit, _: kit.mint(ANN, "new"),
    "rotate": lambda kit, token: kit.tokens.rotate(ADMIN, token),
    "revoke": lambda kit, token: kit.tokens.revoke(ADMIN, token),
    "delete": lambda kit, token: kit.tokens.delete(ADMIN, token),
    "suspend": lambda kit, _: kit.users.suspend(ADMIN, ANN),
    "remove": lambda kit, _: kit.users.remove(ADMIN, ANN),
    "role": lambda kit, _: kit.users.set_role(ADMIN, ANN, "viewer"),
    "org": lambda kit, _: kit.orgs.add(ADMIN, "new"),
    "permissions": lambda kit, _: kit.roles.set(ADMIN, "editor", []),
}


async def _dump(directory: Path) -> list[list[tuple[object, ...]]]:
    """Every row of every table."""
    async with by_itself(directory) as connection:
        return [
            [tuple(row) for row in await connection.execute(sa.select(table).order_by(*table.primary_key))]
            for table in tables.metadata.sorted_tables
        ]


_FAILING = {
    "sqlite": [
        "CREATE TRIGGER no BEFORE INSERT ON audit_events BEGIN SELECT RAISE({0}, 'no'); END",
    ],
    "postgresql": [
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE {0}; END $$",
        "CREATE TRIGGER no BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION no()",
    ],
}
_WORKING = {"sqlite": "DROP TRIGGER no", "postgresql": "DROP FUNCTION no CASCADE"}


@pytest.mark.parametrize(
    ("dialect", "failure"),
    [
        *(("sqlite", failure) for failure in ("ABORT", "FAIL", "ROLLBACK")),
        *(("postgresql", failure) for failure in ("unique_violation", "check_violation")),
    ],
    indirect=["dialect"],
)
async def test_if_the_audit_log_fails_every_change_is_refused_as_a_whole(
    tmp_path: Path, dialect: str, failure: str
) -> None:
    async with opened(tmp_path) as kit:
        await kit.basics()
        token = await kit.mint(ANN, "t")
        epoch = await kit.intact()
        announced = len(kit.announced)
        await _ddl(tmp_path, *(statement.format(failure) for statement in _FAILING[dialect]))
        before = await _dump(tmp_path)
        for name, change in _CHANGES.items():
            with pytest.raises(StoreUnavailable, match="the audit log cannot be written"):
                await change(kit, token.view.id)
            assert await _dump(tmp_path) == before, name
            assert isinstance(await kit.resolve(token.view.prefix), Grant), name
        assert (len(kit.announced), await kit.intact()) == (announced, epoch)
        await _ddl(tmp_path, _WORKING[dialect])
        await kit.tokens.revoke(ADMIN, token.view.id)
        assert await kit.intact() == epoch + 1


async def test_if_the_head_of_the_audit_log_cannot_be_updated_changes_are_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await kit.basics()
        token = await kit.mint(ANN, "t")
        epoch = await kit.intact()
        await _ddl(tmp_path, "ALTER TABLE audit_chain RENAME TO elsewhere")
        for change in _CHANGES.values():
            with pytest.raises(StoreUnavailable):
                await change(kit, token.view.id)
        assert isinstance(await kit.resolve(token.view.prefix), Grant)
        await _ddl(tmp_path, "ALTER TABLE elsewhere RENAME TO audit_chain")
        assert await kit.intact() == epoch
