"""How often one address may fail: a bucket of tokens for each, of which a failure takes one.

Rules of this module:
1. An address is an IPv4 address or an IPv6 /64, which is the least that one site has.
2. What is kept is bounded: ``ADDRESSES`` buckets, the one that was touched longest ago makes room. A full bucket needs
   no keeping.
3. The clock is monotonic; no time passes but by it.
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
"""Bits of an IPv6 address that tell one site from another (RFC 6177)."""


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
        """Take one failure from what the address may still have; false where it may have none now."""
        key = site(address)
        bucket = self._at_present(key)
        self._buckets[key] = bucket
        self._buckets.move_to_end(key)
        while len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1.0:
            return False
        bucket.tokens -= 1.0
        return True

    def give_back(self, address: str) -> None:
        """Undo ``take``: it was no failure."""
        key = site(address)
        bucket = self._at_present(key)
        bucket.tokens = min(self._at_once, bucket.tokens + 1.0)
        if bucket.tokens >= self._at_once:
            self._buckets.pop(key, None)

    def wait(self, address: str) -> int:
        """Whole seconds, 1 at least, until the address may fail again."""
        bucket = self._at_present(site(address))
        return max(1, math.ceil((1.0 - bucket.tokens) / self._per_second))

    def __len__(self) -> int:
        return len(self._buckets)

    def _at_present(self, key: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            return _Bucket(tokens=self._at_once, at=now)
        bucket.tokens = min(self._at_once, bucket.tokens + max(0.0, now - bucket.at) * self._per_second)
        bucket.at = now
        return bucket


def site(address: str) -> str:
    """The IPv4 address, or the IPv6 network, that ``address`` counts for; one name for all that are no address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _SITE), strict=False))
