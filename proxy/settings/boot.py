"""Settings from an inherited descriptor: how a process of the gateway gets them from its supervisor."""

import os
from typing import Final

from proxy.settings.model import Settings

_CHUNK: Final = 1 << 20


def read_settings(fd: int) -> Settings:
    """The settings in an anonymous file, read by position, so that others read the same file; closes ``fd``."""
    document = bytearray()
    try:
        while chunk := os.pread(fd, _CHUNK, len(document)):
            document += chunk
    finally:
        os.close(fd)
    return Settings.from_boot_json(bytes(document))
