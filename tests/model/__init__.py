"""An explicit-state model of the protocol by which several nodes share one PostgreSQL (README.md beside this).

``state`` says what a state is made of. The transitions are in the modules named by what they do: ``node`` (rules 1 to
7), ``change`` (8 to 11), ``barrier`` (12 to 16), ``failover`` (2 and 20), ``faults`` (19, and all that goes wrong).
``invariants`` has what must hold, ``bugs`` the steps that can be switched off, ``catalogue`` what is explored, and
``explore`` the search. ``python -m tests.model`` runs it.
"""
