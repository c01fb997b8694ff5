"""The audit log: search, export, verification and pruning. Reading it leaves events of its own (``reads``)."""
