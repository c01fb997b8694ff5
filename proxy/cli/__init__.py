"""Command line ``patgate``: one module per noun.

Arguments go to the control API over the unix socket in the data directory, and the response is printed as a table, or
as one JSON document with ``--json``. If no gateway runs, the same API runs in this process under the same lock. Exit
statuses: 0 done, 1 refused (the reason is on standard error), 2 usage.

Primitives: the click groups, the client of the control socket, and the printer for people and programs.
"""
