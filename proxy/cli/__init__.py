"""The ``patgate`` command: one module per noun.

Data flows from arguments to the control API over the unix socket in the data directory and back to a table, or to one
JSON document with ``--json``. With no server running, the same API runs in this process under the same lock. Exit
codes: 0 done, 1 refused (said on standard error), 2 usage.

Primitives: the click groups, the client of the control socket, the printer for people and for machines.
"""
