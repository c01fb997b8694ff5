"""Sending signed notices to an address that the operator chose.

Rules of this module:
1. What is sent is signed as Standard Webhooks 1.0 says: ``webhook-id``, ``webhook-timestamp`` (unix seconds) and
   ``webhook-signature`` (``v1,`` and the base64 of HMAC-SHA256 over ``id.timestamp.body``).
2. Taken means an answer of 2xx. A redirection is no answer: the address is the operator's to change.
3. At most ``ANSWER_SECONDS`` and ``ANSWER_BYTES`` are spent on an answer; nothing of it is kept or logged.
4. No secret of a token is ever handed to this module.
"""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import aiohttp

ANSWER_SECONDS: Final = 10.0
ANSWER_BYTES: Final = 64 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where notices go, and the key that they are signed with."""

    url: str
    key: bytes = field(repr=False)


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature`` (Standard Webhooks 1.0, "Signature scheme")."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode("ascii")


class Failed(Exception):
    """The notice was not taken; the message says why, in words of ours. ``rejected``: the receiver will not take it."""

    def __init__(self, why: str, *, rejected: bool = False) -> None:
        super().__init__(why)
        self.rejected = rejected


@asynccontextmanager
async def courier(together: int) -> AsyncIterator[Courier]:
    """What delivers while the block runs, over at most so many connections at a time."""
    # The control plane has loaded it by now.
    import aiohttp

    connector = aiohttp.TCPConnector(limit=together)
    async with aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=False) as session:
        yield Courier(session)


class Courier:
    """Delivers messages. Made by ``courier``."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def deliver(self, endpoint: Endpoint, message_id: str, event: str, data: Mapping[str, object]) -> None:
        """Send one message and wait for it to be taken. Raises Failed."""
        import aiohttp

        timestamp = int(time.time())
        document = {"type": event, "timestamp": _utc(timestamp), "data": dict(data)}
        body = json.dumps(document, separators=(",", ":")).encode()
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(endpoint.key, message_id, timestamp, body),
        }
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        try:
            async with self._session.post(
                endpoint.url, data=body, headers=headers, allow_redirects=False, timeout=timeout
            ) as answer:
                await answer.content.read(ANSWER_BYTES)
                status = answer.status
        except TimeoutError:
            raise Failed("it did not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Failed(f"it cannot be reached ({type(error).__name__})") from None
        if not 200 <= status < 300:
            raise Failed(f"it answered {status}", rejected=300 <= status < 500 and status not in (408, 429))


def _utc(timestamp: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(timestamp))
