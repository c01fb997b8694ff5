"""The data plane: one request, read top to bottom, in a process with no database and no slow hash.

Data flows listen → parse → route → authenticate → authorise → mutate → forward → relay → record over one ``Exchange``
whose slots are each written once, by their phase. A phase continues or returns a refusal; one place builds responses
and one place records. With the grant in the cache nothing is awaited between the last byte of the head and the write to
the upstream.

Primitives: ``Exchange``, the cache of grants with its dependency index, the upstream pools, the link to the authority,
the forward-auth entry that runs the same phases for an ingress.
"""
