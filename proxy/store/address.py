"""Where a store is. Imports nothing of what opens one: a command looks here before it asks."""

from __future__ import annotations

from pathlib import Path

from proxy.core.errors import StoreUnavailable


def sqlite_path(url: str) -> Path:
    """The file of a ``sqlite:///…`` URL (three slashes and a relative path, or four and an absolute one).

    Raises StoreUnavailable for any other database.
    """
    for scheme in ("sqlite:///", "sqlite+aiosqlite:///"):
        if url.startswith(scheme) and len(url) > len(scheme):
            return Path(url.removeprefix(scheme))
    raise StoreUnavailable("the store's address is not one that this version can open: it must begin with sqlite:///")


def store_url(store: str, data_dir: Path) -> str:
    """The address of the store that the settings name: ``sqlite`` means the embedded file in the data directory."""
    return f"sqlite:///{data_dir / 'patgate.db'}" if store == "sqlite" else store
