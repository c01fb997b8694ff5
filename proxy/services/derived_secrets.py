"""Keys that are derived from the one secret key of the deployment.

1. The secret key itself signs, hashes and encrypts nothing; each use has its own label, and no derived key tells of
   another.
2. The fingerprint is stored; it identifies the secret key and gives nothing of it away.
"""

from __future__ import annotations

import hmac


def cache_key(secret_key: bytes) -> bytes:
    """The key (32 bytes) of the digests that caches hold (``core.token.digest``)."""
    return hmac.digest(secret_key, b"patgate/v1/cache-key", "sha256")


def fingerprint(secret_key: bytes) -> str:
    """What ``Store.open`` takes as ``key_fingerprint``: 64 hex digits."""
    return hmac.digest(secret_key, b"patgate/v1/fingerprint", "sha256").hex()
