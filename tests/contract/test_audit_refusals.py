"""A change whose audit event cannot be written is refused as a whole, and existing tokens keep working."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from proxy.core.errors import StoreUnavailable
from proxy.core.model import Grant
from tests.contract.kit import ADMIN, Kit, opened

ANN = "ann@example.org"


def _ddl(directory: Path, statement: str) -> None:
    with sqlite3.connect(directory / "patgate.db") as file:
        file.execute(statement)
    file.close()


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


def _dump(directory: Path) -> list[str]:
    with sqlite3.connect(directory / "patgate.db") as file:
        found = [line for line in file.iterdump() if "TRIGGER" not in line]
    file.close()
    return found


@pytest.mark.parametrize("failure", ["RAISE(ABORT, 'no')", "RAISE(FAIL, 'no')", "RAISE(ROLLBACK, 'no')"])
async def test_if_the_audit_log_fails_every_change_is_refused_as_a_whole(tmp_path: Path, failure: str) -> None:
    async with opened(tmp_path) as kit:
        await kit.basics()
        token = await kit.mint(ANN, "t")
        epoch = await kit.intact()
        announced = len(kit.announced)
        _ddl(tmp_path, f"CREATE TRIGGER no BEFORE INSERT ON audit_events BEGIN SELECT {failure}; END")
        before = _dump(tmp_path)
        for name, change in _CHANGES.items():
            with pytest.raises(StoreUnavailable, match="the audit log cannot be written"):
                await change(kit, token.view.id)
            assert _dump(tmp_path) == before, name
            assert isinstance(await kit.resolve(token.view.prefix), Grant), name
        assert (len(kit.announced), await kit.intact()) == (announced, epoch)
        _ddl(tmp_path, "DROP TRIGGER no")
        await kit.tokens.revoke(ADMIN, token.view.id)
        assert await kit.intact() == epoch + 1


async def test_if_the_head_of_the_audit_log_cannot_be_updated_changes_are_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await kit.basics()
        token = await kit.mint(ANN, "t")
        epoch = await kit.intact()
        _ddl(tmp_path, "ALTER TABLE audit_chain RENAME TO elsewhere")
        for change in _CHANGES.values():
            with pytest.raises(StoreUnavailable):
                await change(kit, token.view.id)
        assert isinstance(await kit.resolve(token.view.prefix), Grant)
        _ddl(tmp_path, "ALTER TABLE elsewhere RENAME TO audit_chain")
        assert await kit.intact() == epoch
