"""The data plane: processes requests in worker processes that use no database and no slow hash.

A request passes through listen → parse → route → authenticate → authorise → second target → mutate → forward → relay →
record (``pipeline``). Its state is one ``Exchange``, each of whose slots is written once, by its phase. A phase
continues or returns a refusal; one place builds responses and one place records. With the grant in the cache, nothing
is awaited between the last byte of the request head and the write to the upstream.

Primitives: ``Exchange``, the grant cache with its dependency index, the upstream pools, the link to the authority, and
the forward-auth entry, which runs the same phases for an ingress.
"""
