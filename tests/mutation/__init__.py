"""Mutation testing: inserts small faults into the modules for security and consistency, and checks that a test fails.

* ``operators.py`` creates the mutants of a source text; ``table.py`` lists the modules, their nearest tests and the
  equivalent mutants; ``tree.py`` runs tests in copies of the checkout, which itself is never changed.
* ``python -m tests.mutation`` (``make mutate``) takes a sample by seed, prints each survivor with its diff and the rate
  of each package, and exits 1 below the required rate.

mutmut and cosmic-ray are well maintained, but do not fit: mutmut runs all mutants in one process with a switch in each
function, while these tests start processes; cosmic-ray runs the same command for every module, while the nearest tests
of a module take seconds instead of the minutes of the whole suite.
"""
