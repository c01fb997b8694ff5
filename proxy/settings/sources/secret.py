"""The secret key: the root of what the store and its digests are bound to.

1. The key is never echoed, logged or part of an error.
2. One text has one key: hex or base64 of at least 32 bytes stands for those bytes; anything else is its own UTF-8.
3. A key file is ours and readable by nobody else, or it is refused.
4. A key file appears whole or not at all, and an existing one is never replaced: a node with another key could read
   no digest of its store. So none is made beside a store either: it has a key, which is missing.
"""

import base64
import binascii
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

from proxy.core.errors import ConfigurationError

SECRET_KEY_BYTES: Final = 32
"""The least that a secret key has, and what a new one gets."""
KEY_FILE: Final = "secret.key"

_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
WEBHOOK_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - how such a secret begins, not one
_MAX_FILE_BYTES: Final = 64 * 1024


def decode_key(text: str) -> bytes | None:
    """The key that a text stands for, at least 32 bytes; None where the text is too short for one."""
    if _HEX.fullmatch(text) and len(text) >= 2 * SECRET_KEY_BYTES:
        return bytes.fromhex(text)
    if _BASE64.fullmatch(text):
        body = text.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            decoded = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
        except binascii.Error:
            decoded = b""
        if len(decoded) >= SECRET_KEY_BYTES:
            return decoded
    plain = text.encode("utf-8", "surrogateescape")
    return plain if len(plain) >= SECRET_KEY_BYTES else None


def decode_webhook_secret(text: str) -> bytes | None:
    """The key that ``whsec_`` and base64 stand for, 24 to 64 bytes; None for anything else.

    Source: Standard Webhooks, "Symmetric key" (the form that receivers' libraries take).
    """
    if not text.startswith(WEBHOOK_SECRET_PREFIX):
        return None
    try:
        key = base64.b64decode(text.removeprefix(WEBHOOK_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if 24 <= len(key) <= 64 else None


def load_or_create(data_dir: Path, store: Path) -> bytes:
    """The node's own key from ``data_dir/secret.key``; made on the first start, mode 0600.

    For nodes whose settings name no ``secret_key``. ``store`` is the database file: where it exists, no key is made,
    because the store belongs to the key that it was made with. Raises ConfigurationError where the key is missing then,
    or its file cannot be made or read, is not ours alone, or holds less than 32 bytes.
    """
    path = data_dir / KEY_FILE
    try:
        if not os.path.lexists(path):
            if any(os.path.lexists(store.with_name(store.name + suffix)) for suffix in ("", "-wal")):
                raise ConfigurationError(
                    f"The secret key {path} of the store {store} is missing, and another key cannot open it: put the "
                    f"file back, or set secret_key if the store was made with a configured key. To begin with a new "
                    f"store, move {store.name} and the files beside it away."
                )
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(path)
        return _load(path)
    except OSError as error:
        raise ConfigurationError(f"The secret key {path} cannot be used: {os.strerror(error.errno or 0)}.") from error


def _create(path: Path) -> None:
    """Write a new key under another name, then link it into place: the link fails where a key is already there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    key = base64.b64encode(secrets.token_bytes(SECRET_KEY_BYTES)) + b"\n"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return  # another process made one between our look and now; that one counts
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _load(path: Path) -> bytes:
    # O_NONBLOCK: a named pipe in the key's place must not hang the start.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"The secret key {path} is not a regular file.")
        if status.st_uid not in (os.geteuid(), 0):
            raise ConfigurationError(f"The secret key {path} belongs to another user.")
        if status.st_mode & 0o077:
            raise ConfigurationError(f"The secret key {path} is open to other users; its mode must be 0600.")
        raw = file.read(_MAX_FILE_BYTES)
    key = decode_key(raw.decode("utf-8", "surrogateescape").strip())
    if key is None:
        raise ConfigurationError(f"The secret key {path} is shorter than {SECRET_KEY_BYTES} bytes.")
    return key
