"""HTTP/1.1 on the wire (RFC 9110, 9112): the grammar of heads, bodies, and the WebSocket handshake.

Bytes come in from ``downstream`` and ``upstream`` and leave as values. Nothing here does I/O or knows a route, a grant
or a connection.
"""
