"""Addresses of stores. Imports no database library: commands read an address before they connect to a gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from proxy.core.errors import StoreUnavailable

UNKNOWN: Final = (
    "the store's address is not one that this version can open: it must begin with sqlite:/// or postgresql://"
)


def sqlite_path(url: str) -> Path:
    """The file of a ``sqlite:///…`` URL (three slashes and a relative path, or four and an absolute one).

    Raises StoreUnavailable for any other database.
    """
    for scheme in ("sqlite:///", "sqlite+aiosqlite:///"):
        if url.startswith(scheme) and len(url) > len(scheme):
            return Path(url.removeprefix(scheme))
    raise StoreUnavailable(UNKNOWN)


def store_url(store: str, data_dir: Path) -> str:
    """The address of the store that the settings name: ``sqlite`` means the embedded file in the data directory."""
    return f"sqlite:///{data_dir / 'patgate.db'}" if store == "sqlite" else store
