"""HTTP/1.1 on the wire (RFC 9110, 9112): the grammar of heads, bodies, and the WebSocket handshake.

Parsers and encoders of bytes that ``downstream`` and ``upstream`` read and write. Nothing here does I/O or knows a
route, a grant or a connection.
"""
