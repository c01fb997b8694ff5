"""Several nodes on one store: the protocol by which a change is in force on all of them when its caller gets an answer.

A node holds a lease: until then its workers decide from their caches. ``node`` joins the store's nodes and renews the
lease, in a state machine; ``judgement`` decides whether the store is the one that this node knows, by what ``memory``
keeps on disk. ``follower`` raises the shared page to the store's newest change, acknowledges it and pushes the changed
keys to the workers. ``barrier`` lets whoever made a change, or saw one, wait until every node has acknowledged it or
can no longer have a lease. ``membership`` puts them together for the authority.

Times are CLOCK_BOOTTIME of this host (``core.ipc.clock``); no time of a database decides anything. Why each step is
needed: docs/consistency.md.
"""
