"""The phases of a request, one module each. The pipeline calls them in order; they never import each other.

A phase reads and writes slots of the ``Exchange`` and continues or returns a refusal. It writes no response, no log
line and no metric, except for ``respond``, which builds every refusal, and ``record``, which runs once at the end.
"""
