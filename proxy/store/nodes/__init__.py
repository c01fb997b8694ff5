"""Nodes of one store: their rows, what they have applied, and which database the store is in.

A node that may serve from its cache has a row in ``nodes``, which it renews, and one in ``acknowledgements``, up to
which change it has raised its page. A node that made a change waits until every row has acknowledged it. ``records``
has the values, ``statements`` the SQL of PostgreSQL, ``sessions`` what the protocol needs of a database, and
``history`` what an operator has accepted. The protocol itself is in ``authority.consistency``.
"""
