"""Fingerprint of a configuration, by which nodes of one store see whether they decide alike."""

from __future__ import annotations

import hashlib
import json
from typing import Final

from proxy.settings.model import Settings

_OF_ONE_HOST: Final = frozenset(
    (
        "data_dir",
        "listen",
        "workers",
        "log",
        "store",
        "store_session",
        "store_password",
        "secret_key",
        "cache",
        "argon2",
    )
)
"""Settings that may differ between nodes: where a node is, and how much it can do."""


def config_hash(settings: Settings) -> str:
    """SHA-256 (hexadecimal) of everything that nodes of one store should have in common; secrets are left out.

    Defaults are left out too, so that a version with a new setting has the same hash as the one before it.
    """
    document = settings.model_dump(mode="json", exclude=set(_OF_ONE_HOST), exclude_defaults=True)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
