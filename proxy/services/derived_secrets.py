"""Derives purpose-specific keys from the deployment's secret key.

1. The secret key itself signs, hashes and encrypts nothing. Each use has its own label, and a derived key reveals
   nothing about another.
2. The fingerprint is stored. It identifies the secret key and reveals nothing about it.
"""

from __future__ import annotations

import hmac


def cache_key(secret_key: bytes) -> bytes:
    """The key (32 bytes) for the token digests that caches hold (``core.token.digest``)."""
    return hmac.digest(secret_key, b"patgate/v1/cache-key", "sha256")


def fingerprint(secret_key: bytes) -> str:
    """The ``key_fingerprint`` for ``Store.open``: 64 hex digits."""
    return hmac.digest(secret_key, b"patgate/v1/fingerprint", "sha256").hex()
