"""The verbs of the product: what may be done to users, organisations, roles and tokens, and what each does.

Data flows from the control API or the command line through one service method into one store transaction. A method
checks the policy, names everything its change touches, and returns a frozen view; secrets appear only in the answer of
the method that makes them.

Primitives: ``Users``, ``Orgs``, ``Members``, ``Invitations``, ``Roles``, ``Tokens`` (each built from a store and a
clock), ``grants`` (rows into the grant that a gateway decides from), ``hashing`` (the protocol that the authority's
argon2 pool implements).
"""
