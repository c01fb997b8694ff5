"""Authority: the one process per host that owns the store, and resolves tokens into grants for the gateway workers.

``resolve`` and ``verify`` requests come in over a unix socket; grants go out, each as of an epoch. A commit first
raises the epoch in the shared page and is then pushed to the workers. The lease beside the epoch is renewed only while
the store is certainly ours, so workers whose authority has died refuse requests.

Primitives: the page writer, the lease, the link server, the resolver, the bounded argon2 pool, and the counters that
sum the snapshots of running and ended workers.
"""
