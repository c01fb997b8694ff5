"""Cases of threats.md section 4 that are tables."""

from __future__ import annotations

UPGRADES = {
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "h2c without settings": "Connection: Upgrade\r\nUpgrade: h2c\r\n",
    "h2c that Connection does not name": "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "TLS": "Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
    "anything": "Connection: keep-alive, Upgrade\r\nUpgrade: anything/1\r\n",
    "h2c beside websocket": "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
    "h2c beside websocket in two lines": "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
    "websocket that Connection does not name": "Upgrade: websocket\r\n",
    "websocket that a Connection of other options does not name": "Connection: keep-alive\r\nUpgrade: websocket\r\n",
    "an alias": "Connection: Up_grade\r\nUp_grade: h2c\r\nHTTP2_Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
}

DESYNCHRONISING = {
    "HEAD with a length": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n", 200),
    "HEAD with a coding": ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200),
    "HEAD without either": ("HEAD", b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n", 200),
    "204 with a length": ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\n", 204),
    "204 with a coding": ("GET", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 204),
    "304 with a length": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\nETag: x\r\n\r\n", 304),
    "304 with a coding": ("GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", 304),
    "an interim answer with a length": (
        "GET",
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 41\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        200,
    ),
    "an interim answer with a coding": (
        "GET",
        b"HTTP/1.1 102 Processing\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        200,
    ),
}
