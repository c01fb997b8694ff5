"""Connections from clients: accepting them, the PROXY protocol, reading and writing, limits, and closing.

``listener_factory`` builds an ``acceptor`` for each listening socket; the acceptor hands each connection (``accepted``)
to ``connection``, which reads heads and bodies and drives the pipeline. ``min_rate``, ``lingering_close``,
``disconnect`` and ``fd_limits`` bound what a slow or absent client can hold.
"""
