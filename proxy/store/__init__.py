"""The record at rest: tables, transactions, the numbered change feed, migrations. The only place that knows SQL.

A change flows through one transaction that writes its rows, its row in ``changes`` and its audit event together; after
the commit the new epoch is announced, and only then does the caller get its answer. Reads are snapshots that know the
epoch they are as of.

Primitives: ``Store`` (one writer, several readers), ``change`` (one mutation), ``resolve`` (all that one token depends
on, in one snapshot), ``changes_since`` (what to forget). Errors of the database are mapped once, here.
"""
