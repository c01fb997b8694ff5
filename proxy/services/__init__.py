"""The operations of the product: creating, reading, changing and deleting tokens, keys, users, organisations and roles.

Data flows from the control API or the command line through one service method into one store transaction. A method
loads the caller with its permissions (``caller``), checks them and the token policy, names everything that its change
touches, and returns a frozen view (``views``). A secret is only in the result of the method that creates it.

Primitives: ``TokenService``, ``KeyService``, ``PolicyService``, ``UserService``, ``OrgService``, ``MemberService``,
``InvitationService``, ``RoleService``, ``AuditService`` (each built from a store and a clock), ``grants`` (turns rows
into the grant that a gateway decides with), ``secret_hasher`` (the protocol that the authority's argon2 pool
implements).
"""
