"""What a node remembers of its store over restarts: ``data_dir/history.json``, mode 0600.

The shared page has a number only, and the same number may stand for another change in another store. The file is
replaced in one step (a draft, fsync, rename, fsync of the directory), so it is the former one or the new one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from proxy.core.errors import StoreUnavailable
from proxy.store.nodes.records import Remembered

FILE: Final = "history.json"
_LARGEST: Final = 64 * 1024


def load(data_dir: Path) -> Remembered | None:
    """What the file says; None without a file. Raises StoreUnavailable for a file that cannot be used."""
    try:
        descriptor = os.open(data_dir / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnavailable(f"{FILE} in the data directory cannot be read: {error.strerror}") from error
    try:
        with open(descriptor, "rb") as file:
            found = json.loads(file.read(_LARGEST))
        return Remembered(
            n=int(found["change"]),
            mark=bytes.fromhex(found["mark"]),
            history=str(found["history"]),
            acceptances=frozenset(map(str, found["acceptances"])),
        )
    except OSError as error:
        raise StoreUnavailable(f"{FILE} in the data directory cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreUnavailable(
            f"{FILE} in the data directory is damaged: it says which store this node has followed. Check that the "
            "store is the right one, then remove the file"
        ) from error


def save(data_dir: Path, remembered: Remembered) -> None:
    """Replace the file. Blocks for the disk. Raises OSError."""
    document = {
        "change": remembered.n,
        "mark": remembered.mark.hex(),
        "history": remembered.history,
        "acceptances": sorted(remembered.acceptances),
    }
    draft = data_dir / f".{FILE}.{os.getpid()}"
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(json.dumps(document) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(data_dir / FILE)
    directory = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
