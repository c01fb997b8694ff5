"""The SQL of docs/operations.md makes a database that patgate can use, and nobody else can."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.store.store import Store
from tests.support.postgres import OWNER, Postgres

_PAGE = Path(__file__).parents[4] / "docs" / "operations.md"


async def test_the_database_of_the_documentation_is_enough_for_patgate_and_closed_to_others() -> None:
    (sql,) = re.findall(r"^```sql\n(.*?)^```", _PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert "'change me'" in sql
    with Postgres() as server:
        server.psql(f"DROP ROLE {OWNER}")
        server.psql(sql.replace("change me", server.owner_password))
        store = await Store.open(server.url("patgate"), key_fingerprint="f")
        await store.close()
        server.psql("CREATE ROLE other")
        rights = "SELECT has_database_privilege('other', 'patgate', 'CONNECT, CREATE, TEMPORARY')"
        assert server.psql(rights, "patgate") == "f"
        assert server.psql("SELECT has_schema_privilege('other', 'public', 'USAGE, CREATE')", "patgate") == "f"
        owner = (
            "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication FROM pg_roles WHERE rolname = 'patgate'"
        )
        assert server.psql(owner) == "f"
