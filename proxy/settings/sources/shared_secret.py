"""The secret that an ingress shares with the forward-auth listener: reads the file that holds it.

1. The secret is never printed, logged or part of an error; only its digest is kept.
2. The file holds one secret, or two while it is being changed: the ingress may use either.
"""

import hashlib
import re
from pathlib import Path
from typing import Final

MOST: Final = 2
_SECRET: Final = re.compile(rb"[!-~]{32,1024}")
_MAX_FILE_BYTES: Final = 4096


class SharedSecretError(ValueError):
    """The file does not hold a usable secret; the message says why, without the secret."""


def read_digests(path: Path) -> tuple[bytes, ...]:
    """The SHA-256 digest of each secret in the file. Raises OSError, and SharedSecretError for its content."""
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    if len(content) > _MAX_FILE_BYTES or not 1 <= len(lines) <= MOST:
        raise SharedSecretError(f"must hold one secret, or {MOST} on lines of their own")
    if any(_SECRET.fullmatch(line) is None for line in lines):
        raise SharedSecretError("must hold a secret of at least 32 characters of plain ASCII without spaces")
    return tuple(hashlib.sha256(line).digest() for line in lines)
