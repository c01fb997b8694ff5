"""The composition root: what each process of a gateway is made of.

`python -m proxy.app gateway|authority …` is how the supervisor starts a child. Each role imports its own half of the
package and nothing of the other's: a gateway worker has no database, no slow hash and no control plane in its memory.
Only descriptors are on the command line; the configuration is read from the one called boot.
"""

import argparse
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from proxy.core.errors import PatgateError
from proxy.observe import logs
from proxy.settings.model import Settings

if TYPE_CHECKING:
    from proxy.authority.process import ServeControl

if TYPE_CHECKING:
    from proxy.authority.process import ServeControl

_CHUNK: Final = 1 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one child to its end; the exit status. A start that fails says why over the ready pipe."""
    options = _parser().parse_args(arguments)
    # Ctrl-C reaches the whole process group; the supervisor alone answers to it and stops its children in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = f"gateway-{options.slot}" if options.role == "gateway" else "authority"
    logs.configure(process=process)
    # The role closes its descriptor once it is ready, and the number may then be another file's.
    ready_fd = os.dup(options.ready_fd)
    try:
        settings = _boot(options.boot_fd)
        logs.configure(process=process, level=settings.log.level, line_format=settings.log.format)
        return _gateway(settings, options) if options.role == "gateway" else _authority(settings, options)
    except PatgateError as error:
        if not _said(ready_fd, str(error)):
            logs.get_logger("app").error("process ends", problem=str(error))
        return 1
    finally:
        os.close(ready_fd)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m proxy.app", description="A child process of `patgate serve`.")
    parser.add_argument("role", choices=("gateway", "authority"))
    parser.add_argument("--boot-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--slot", type=int, default=0)
    parser.add_argument("--proxy-fd", type=int)
    parser.add_argument("--forward-auth-fd", type=int)
    parser.add_argument("--control-fd", type=int)
    parser.add_argument("--accept-older-store", action="store_true")
    return parser


def _boot(fd: int) -> Settings:
    """Settings from the boot descriptor, by position: a later start of the same slot reads the same file again."""
    document = bytearray()
    while chunk := os.pread(fd, _CHUNK, len(document)):
        document += chunk
    os.close(fd)
    return Settings.from_boot_json(bytes(document))


def _gateway(settings: Settings, options: argparse.Namespace) -> int:
    from proxy.gateway import worker

    return worker.run(
        settings, options.slot, options.proxy_fd, options.forward_auth_fd, options.lifeline_fd, options.ready_fd
    )


def _authority(settings: Settings, options: argparse.Namespace) -> int:
    from proxy.authority import process

    return process.run(
        settings,
        options.control_fd,
        options.lifeline_fd,
        options.ready_fd,
        options.accept_older_store,
        load_control=_load_control,
    )


def _load_control() -> "ServeControl":
    from proxy.control.server import serving

    return serving


@asynccontextmanager
async def offline_control(settings: Settings) -> AsyncIterator[Path]:
    """The control API of a store that no gateway serves, on a private socket; yields the socket's path.

    The caller holds the data directory's lock. Raises `PatgateError` where the store cannot be opened.
    """
    from proxy.authority import process

    async with process.offline(settings, _load_control) as path:
        yield path


def _said(ready_fd: int, sentence: str) -> bool:
    """Tell the supervisor why this start failed; `False` when it no longer waits for a word, which is after a start."""
    try:
        os.write(ready_fd, f"error: {' '.join(sentence.split())}\n".encode())
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
