"""Throttling of failed authentication: one token bucket for each address; a failure takes one token.

Rules of this module:
1. An address is an IPv4 address or an IPv6 /64, the smallest network of one site.
2. Memory is bounded: ``ADDRESSES`` buckets, of which the least recently used is dropped. Full buckets are not kept.
3. The clock is monotonic.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

AT_ONCE: Final = 10
PER_SECOND: Final = 1.0
ADDRESSES: Final = 4096
_SITE: Final = 64
"""Bits of an IPv6 address that identify a site (RFC 6177)."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Throttle:
    """Counts failures by address; ``clock`` gives seconds, monotonically."""

    def __init__(self, clock: Callable[[], float], *, at_once: int = AT_ONCE, per_second: float = PER_SECOND) -> None:
        self._clock = clock
        self._at_once = float(at_once)
        self._per_second = per_second
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, address: str) -> bool:
        """Take one token for a failure of this address; false when none is left."""
        key = site(address)
        bucket = self._refilled(key)
        self._buckets[key] = bucket
        self._buckets.move_to_end(key)
        while len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1.0:
            return False
        bucket.tokens -= 1.0
        return True

    def give_back(self, address: str) -> None:
        """Undo ``take``, because there was no failure."""
        key = site(address)
        bucket = self._refilled(key)
        bucket.tokens = min(self._at_once, bucket.tokens + 1.0)
        if bucket.tokens >= self._at_once:
            self._buckets.pop(key, None)

    def wait(self, address: str) -> int:
        """Whole seconds, at least 1, until the address may fail again."""
        bucket = self._refilled(site(address))
        return max(1, math.ceil((1.0 - bucket.tokens) / self._per_second))

    def __len__(self) -> int:
        return len(self._buckets)

    def _refilled(self, key: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            return _Bucket(tokens=self._at_once, at=now)
        bucket.tokens = min(self._at_once, bucket.tokens + max(0.0, now - bucket.at) * self._per_second)
        bucket.at = now
        return bucket


def site(address: str) -> str:
    """The IPv4 address or IPv6 network that ``address`` is counted under; "" for a text that is no address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _SITE), strict=False))
