"""The parent of a gateway's processes: holds what must outlive them, starts them in order, replaces them, stops them.

Data flows only at a start: settings → an anonymous file that each child reads; listening sockets, the lock and a
lifeline → descriptors that each child inherits; one line back over each child's ready pipe. After that the supervisor
waits for a child to end or a signal to come, and does nothing else.

Primitives: ``Supervisor`` (one gateway), ``Keeper`` (one slot, refilled), ``Spares`` (a
process that stands by for a slot), ``Child`` (one process), ``Listener`` (one address, a
socket per slot), ``datadir`` (the lock, which is free only when the last process is gone).
"""

from proxy.supervisor.supervise import Serving, Supervisor

__all__ = ["Serving", "Supervisor"]
