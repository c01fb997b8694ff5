"""Whether a timed history of allows and denies is one that the promise of several nodes permits.

``checker`` has the interface: decisions, changes, and the violations that they prove. ``register`` decides for one
token on one node. ``brute_force`` decides the same for small histories in the most obvious way, and ``test_random``
compares the two.
"""
