"""Values and decisions that every process shares, without I/O, clock or third-party libraries.

The modules in the order in which a request uses them: ``request.target`` brings the path into canonical form or refuses
it, ``routes`` finds the route and the requested operation, ``token`` parses the credential, ``decision`` decides from
match and grant, ``reasons`` maps a refusal to its response, ``identity`` writes the identity headers for the backend.

Primitives: ``Grant`` (what a token may do now), ``Match`` (what a request needs), ``Reason`` (the result of a
decision), ``PermissionSet`` (sets of permissions), ``ipc`` (messages and shared memory between the processes of a
host).
"""
