"""The ``Date`` header field."""

from __future__ import annotations

import time
from email.utils import formatdate


class HttpClock:
    """Formats the time as an IMF-fixdate (RFC 9110 section 5.6.7), once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def date_line(self) -> bytes:
        """The field line ``Date`` with the current time, without its CRLF."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._line = b"Date: " + formatdate(second, usegmt=True).encode("ascii")
        return self._line
