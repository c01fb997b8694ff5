"""Webhook delivery: sends signed notices to the URL that the operator has configured.

``housekeeping`` decides what is sent, and when it is tried again.

Rules of this module:
1. Messages are signed by Standard Webhooks 1.0: ``webhook-id``, ``webhook-timestamp`` (unix seconds) and
   ``webhook-signature`` (``v1,`` and the base64 of HMAC-SHA256 over ``id.timestamp.body``).
2. A 2xx response means delivered. Redirects are not followed: only the operator changes the URL.
3. At most ``ANSWER_SECONDS`` and ``ANSWER_BYTES`` are spent on a response; nothing of it is kept or logged.
4. No token secret is ever passed to this module.
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
    """The URL that notices are sent to, and the key that signs them."""

    url: str
    key: bytes = field(repr=False)


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature`` (Standard Webhooks 1.0, "Signature scheme")."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode("ascii")


class DeliveryFailed(Exception):
    """A notice was not delivered; the message says why in our own words. ``rejected``: a retry will fail too."""

    def __init__(self, why: str, *, rejected: bool = False) -> None:
        super().__init__(why)
        self.rejected = rejected


@asynccontextmanager
async def webhook_client(together: int) -> AsyncIterator[WebhookClient]:
    """A client for the block, with at most ``together`` connections at a time."""
    # Imported here, not at the start: by now the control plane has loaded it.
    import aiohttp

    connector = aiohttp.TCPConnector(limit=together)
    async with aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=False) as session:
        yield WebhookClient(session)


class WebhookClient:
    """Delivers messages; created by ``webhook_client``."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def deliver(self, endpoint: Endpoint, message_id: str, event: str, data: Mapping[str, object]) -> None:
        """Send one message and wait for the response. Raises DeliveryFailed."""
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
            raise DeliveryFailed("it did not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise DeliveryFailed(f"it cannot be reached ({type(error).__name__})") from None
        if not 200 <= status < 300:
            raise DeliveryFailed(f"it answered {status}", rejected=300 <= status < 500 and status not in (408, 429))


def _utc(timestamp: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(timestamp))
