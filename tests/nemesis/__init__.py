"""Several nodes on one PostgreSQL under faults: what clients see is recorded and judged (docs/consistency.md).

* ``cluster`` starts PostgreSQL and the nodes, each node in a network namespace of its own.
* ``client`` is a process with kept-alive connections to every node: it asks for verdicts without a pause, makes changes
  and records both. ``wire`` has its connections, ``record`` the files that it writes.
* ``nemesis`` freezes, kills, cuts and restarts, from a seed. ``faults`` has one class for each kind.
* ``verdict`` hands the records to ``tests.history.checker``, and compares the acknowledged changes with the store's
  audit log.
* ``run`` puts them together; ``python -m tests.nemesis`` is ``make nemesis``. ``mutants`` are small changes of the
  product, each of which switches off a step of the protocol: a run must find them.
"""
