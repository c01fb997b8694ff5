"""Data directory: its ownership and mode, its lock, and the published addresses of the listeners.

The directory belongs to the user that patgate runs as, and so does every file that is opened in it. None is a symbolic
link, because its target would be read, truncated or overwritten.

The lock is an ``flock`` on ``lock``. Every process of a gateway inherits its descriptor, so it is free only when the
last of them has ended: after a supervisor was killed, no second one starts while its children still drain.
"""

import asyncio
import errno
import fcntl
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from proxy.core.errors import DataDirBusy, NoStore, StoreUnavailable

LOCK: Final = "lock"
ADDRESSES: Final = "addresses.json"
CONTROL_SOCKET: Final = "control.sock"

# A command that works on the store without a server holds the lock for well under this long.
PATIENCE_SECONDS: Final = 3.0
_RETRY_SECONDS: Final = 0.02


class DataDirLock:
    """A held lock. ``fd`` may be inherited; ``release`` gives up this process's share only."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def is_of(self, data_dir: Path) -> bool:
        """Whether the directory at this path is still the one that was locked, neither removed nor replaced."""
        try:
            current = os.stat(data_dir / LOCK, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(current, os.fstat(self.fd))

    def release(self) -> None:
        """Close this process's descriptor; the lock is free when no other process holds one."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def prepare(data_dir: Path) -> None:
    """Create the directory, readable by its owner, this user, alone (mode 0700). Raises ``StoreUnavailable``."""
    try:
        for missing in reversed([parent for parent in data_dir.parents if not parent.exists()]):
            missing.mkdir(mode=0o755, exist_ok=True)
        data_dir.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _require_owner(data_dir, os.fstat(fd).st_uid)
            os.fchmod(fd, 0o700)
        finally:
            os.close(fd)
    except OSError as error:
        raise StoreUnavailable(f"The data directory {data_dir} cannot be used: {error.strerror}.") from error


def _require_owner(data_dir: Path, owner: int) -> None:
    if owner != os.geteuid():
        raise StoreUnavailable(
            f"The data directory {data_dir} belongs to another user (user id {owner}): run patgate as that "
            f"user, or give the directory and what is in it to user id {os.geteuid()}."
        )


def require_store(data_dir: Path, database: Path) -> None:
    """Raise ``NoStore`` when there is no store and no running patgate that may create one. Creates nothing."""
    try:
        _require_owner(data_dir, data_dir.stat().st_uid)
        if os.path.lexists(database) or _is_locked(data_dir):
            return
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise StoreUnavailable(f"The data directory {data_dir} cannot be used: {error.strerror}.") from error
    raise NoStore(
        f"There is no store in the data directory {data_dir}: check data_dir in the configuration. A new store is made "
        "by patgate serve, quickstart, user add, org add and role set."
    )


def _is_locked(data_dir: Path) -> bool:
    """Whether another process holds the lock; a missing lock file is not created."""
    try:
        fd = os.open(data_dir / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def exists(path: Path) -> bool:
    """Whether a file of the directory exists. Raises ``StoreUnavailable`` when it is a link or another user's."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.geteuid(), 0):
        raise StoreUnavailable(f"{path} in the data directory is not a regular file of this user.")
    return True


def try_lock(data_dir: Path, purpose: str) -> DataDirLock | None:
    """Take the lock, or return ``None`` when another process holds it. ``purpose`` is written to the lock file."""
    try:
        fd = os.open(data_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        cause = "its lock is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise StoreUnavailable(f"The data directory {data_dir} cannot be locked: {cause}.") from error
    held = DataDirLock(fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            held.release()
            raise StoreUnavailable(
                f"The data directory {data_dir} cannot be locked: its lock is not a regular file of this user."
            )
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {purpose}\n".encode(), 0)
    except BlockingIOError:
        held.release()
        return None
    except OSError as error:
        held.release()
        raise StoreUnavailable(f"The data directory {data_dir} cannot be locked: {error.strerror}.") from error
    return held


async def lock(data_dir: Path, purpose: str, patience: float = PATIENCE_SECONDS) -> DataDirLock:
    """Take the lock, waiting at most ``patience`` seconds for its holder. Raises ``DataDirBusy``."""
    deadline = asyncio.get_running_loop().time() + patience
    while (held := try_lock(data_dir, purpose)) is None:
        if asyncio.get_running_loop().time() >= deadline:
            raise DataDirBusy(f"The data directory {data_dir} is in use by {_holder(data_dir)}.")
        await asyncio.sleep(_RETRY_SECONDS)  # flock has no wait with a deadline
    return held


def _holder(data_dir: Path) -> str:
    try:
        pid, _, purpose = (data_dir / LOCK).read_text("ascii", "replace").strip().partition(" ")
    except OSError:
        return "another patgate"
    if not pid.isdecimal():
        return "another patgate"
    return f"another patgate (started as process {pid}, {purpose})" if purpose.isprintable() else "another patgate"


def write_addresses(data_dir: Path, addresses: Mapping[str, str]) -> None:
    """Publish ``{"proxy": "host:port", …}`` atomically; the file exists only while the gateway serves.

    Raises ``StoreUnavailable``.
    """
    draft = data_dir / f".{ADDRESSES}.{os.getpid()}"
    try:
        draft.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(draft, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(json.dumps(dict(addresses), indent=2) + "\n")
        draft.replace(data_dir / ADDRESSES)
    except OSError as error:
        raise StoreUnavailable(f"The data directory {data_dir} cannot be written to: {error.strerror}.") from error


def forget_addresses(data_dir: Path) -> None:
    """Remove the addresses that an earlier run published."""
    (data_dir / ADDRESSES).unlink(missing_ok=True)
