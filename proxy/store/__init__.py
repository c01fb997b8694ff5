"""The persistent store: tables, transactions, the numbered change feed, migrations. The only package with SQL.

A change is one transaction that writes its rows, its row in ``changes`` and its audit event together. After the commit
the new epoch is announced, and only then does the caller get its answer. Reads are snapshots that state their epoch.

Primitives: ``Store`` (one writer, several readers), ``change`` (one mutation), ``resolve`` (everything that a token's
grant depends on, in one snapshot), ``changes_since`` (which cached grants to drop). ``dialects`` holds what only one
database can do. Errors of the database are mapped once, here (``errors``).
"""
