"""Supervisor: the parent process of a gateway, which starts, replaces, reloads and stops the other processes.

At a start, settings go to an anonymous file that each child reads; listening sockets, the lock and a lifeline are
descriptors that each child inherits; each child writes one line to its ready pipe. After that the supervisor waits for
a child to end or hang, or for a signal, and does nothing else.

Primitives: ``Supervisor`` (one gateway), ``Children`` (all its processes), ``Keeper`` (restarts one child), ``Spares``
(a loaded process that stands by), ``Child`` (one process), ``Generation`` (one configuration), ``Reload`` (from one
generation to the next), ``ListeningSockets`` (one address, a socket per slot), ``datadir`` (the lock, which is free
only when the last process has ended).
"""

from proxy.supervisor.supervise import Serving, Supervisor

__all__ = ["Serving", "Supervisor"]
