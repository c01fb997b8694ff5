"""Mutation testing: small faults put into the modules of security and truth, to see that some test fails for each.

* ``operators.py`` makes the mutants of a source text; ``table.py`` names the modules, their nearest tests and the
  mutants that change nothing; ``tree.py`` runs tests in copies of the checkout, which itself is never changed.
* ``python -m tests.mutation`` (``make mutate``) takes a sample by seed, prints each survivor with its diff and the rate
  of each package, and exits 1 below the rate that was asked for.

Neither mutmut nor cosmic-ray, both of which are kept well: the one runs all mutants in one process behind a switch in
each function, while our tests start processes; the other runs one command for every module, and a module's nearest
tests take seconds where the whole suite takes minutes.
"""
