"""The one process per host that owns the store and tells the gateway workers what tokens may do.

Data flows in as ``resolve`` and ``verify`` requests over a unix socket and out as grants, each as of an epoch; commits
raise the epoch in the shared page first and are pushed to the workers after. The lease beside the epoch is renewed only
while the store can be believed, so a worker whose authority has died refuses rather than guesses.

Primitives: the page writer, the lease, the link server, the resolver, the bounded argon2 pool, the counters that sum
the workers' snapshots and keep those of the dead.
"""
