"""Connections to the backends: a pool of keep-alive connections for each upstream, DNS, and health checks.

``pool`` chooses a server and lends a connection to one exchange at a time. ``dns`` keeps the addresses of names
current, ``health_check`` decides which servers get requests, and ``monitor`` runs both for a worker.
"""
