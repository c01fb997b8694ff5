"""Copies the embedded store into an empty database of PostgreSQL, whole and verified (``patgate store copy``).

``columns`` knows what PostgreSQL takes; ``source`` reads the embedded file, ``target`` writes and reads back;
``copy`` is the order of it all.

Rules:

1. Nothing else uses the embedded store meanwhile: the caller holds the lock of the data directory.
2. The target is written in one transaction, with its schema: a copy that ends early leaves nothing behind, and nobody
   sees a part of it.
3. Every row is read back before the commit and compared with what was read, bit for bit.
4. Numbers of changes, with the head and its mark, stay as they are, because the pages of nodes remember them.
5. What belongs to running nodes is not copied (``columns.OF_NODES``).
6. Messages name table, row and column, and repeat no value.
"""
