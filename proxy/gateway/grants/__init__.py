"""The grants that a worker decides from: the cache, the client of the authority, and the shared memory page.

A token's prefix leads to its grant in ``cache``. A miss is asked for through ``lookup_queue`` and
``authority_client``. ``shared_memory`` reads the epoch and the lease with which every decision is compared.
"""
