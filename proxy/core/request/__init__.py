"""Parsing a request's target and claims: the canonical path, the host, and headers that name a target or a client.

The gateway, forward auth and ``patgate explain`` all use these functions, so that they agree on every request.
"""
