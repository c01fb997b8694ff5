"""The audit log: search, export, verification and pruning. Reading it is recorded too (``reads``)."""
