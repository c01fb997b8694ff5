"""The grants that a worker decides from: the cache, the client of the authority, and the shared memory page.

``cache`` finds a token's grant by its prefix. A miss is looked up through ``lookup_queue`` and ``authority_client``.
``shared_memory`` reads the epoch and the lease that every decision is compared with.
"""
