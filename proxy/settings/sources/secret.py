"""The secret key, from which the keys for the digests of the store are derived: decoding, loading, creating.

1. The key is never printed, logged or part of an error.
2. A text has one key: hex or base64 of at least 32 bytes decodes to those bytes; any other text is the key as UTF-8.
3. A key file must belong to this user or root and be readable by no other user, or it is refused.
4. A key file is created atomically and never replaced, because a node with another key could verify no digest of its
   store. For the same reason no key is created if a store exists: its own key is missing.
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
"""The minimum length of a secret key, and the length of a new one."""
KEY_FILE: Final = "secret.key"

_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
WEBHOOK_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the prefix of such a secret
_MAX_FILE_BYTES: Final = 64 * 1024


def decode_key(text: str) -> bytes | None:
    """The key for a text, at least 32 bytes; None if the text is too short."""
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
    """The key of ``whsec_`` and base64, 24 to 64 bytes; None for all else.

    Source: Standard Webhooks, "Symmetric key" (the form that the receivers' libraries accept).
    """
    if not text.startswith(WEBHOOK_SECRET_PREFIX):
        return None
    try:
        key = base64.b64decode(text.removeprefix(WEBHOOK_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if 24 <= len(key) <= 64 else None


def load_or_create(data_dir: Path, store: Path) -> bytes:
    """Load the key from ``data_dir/secret.key``; the first start creates it with mode 0600.

    For nodes without the setting ``secret_key``. ``store`` is the database file: if it exists, no key is created,
    because the store belongs to the key of its creation. Raises ConfigurationError if that key is missing, or if the
    key file cannot be created or read, is accessible to other users, or has less than 32 bytes.
    """
    path = data_dir / KEY_FILE
    try:
        if not os.path.lexists(path):
            if any(os.path.lexists(store.with_name(store.name + suffix)) for suffix in ("", "-wal")):
                raise ConfigurationError(
                    f"The secret key {path} of the store {store} is missing, and another key cannot open it: put the "
                    f"file back, or set secret_key if the store was created with a configured key. To begin with a new "
                    f"store, move {store.name} and the files beside it away."
                )
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(path)
        return _load(path)
    except OSError as error:
        raise ConfigurationError(f"The secret key {path} cannot be used: {os.strerror(error.errno or 0)}.") from error


def _create(path: Path) -> None:
    """Write a new key to a temporary file and link it into place; the link fails if a key already exists."""
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
            return  # another process has created one in the meantime; use that
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _load(path: Path) -> bytes:
    # O_NONBLOCK: a named pipe in place of the key must not block the start.
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
