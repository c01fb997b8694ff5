"""Reading the settings that a child process inherits from its supervisor in a file descriptor."""

import os
from typing import Final

from proxy.settings.model import Settings

_CHUNK: Final = 1 << 20


def read_settings(fd: int) -> Settings:
    """Read the settings from an anonymous file and close ``fd``.

    Reads by position, because several processes share the file.
    """
    document = bytearray()
    try:
        while chunk := os.pread(fd, _CHUNK, len(document)):
            document += chunk
    finally:
        os.close(fd)
    return Settings.from_boot_json(bytes(document))
