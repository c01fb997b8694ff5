"""Reading a request's target and claims: the canonical path, the host, and headers that name a target or a client.

One reading for all: the gateway, forward auth and ``patgate explain`` judge what these functions return.
"""
