"""The composition root: starts one child process, a gateway worker or the authority.

The supervisor starts ``python -P -m proxy.app gateway|authority …``. Each role imports only its own half of the
package: a gateway worker has no database, no slow hash and no control plane in memory. The command line has descriptors
only; the configuration is in the one of ``--boot-fd``. A standby process (``proxy.standby``) loads the same half and
receives the rest of its command line when it is needed.
"""

import argparse
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from proxy import standby, startup, supervisor_channel
from proxy.core.errors import DataDirLost, PatgateError
from proxy.core.ipc.child_protocol import DATA_DIR_LOST, ERROR, READY, SPARE_SUFFIX, CommandSource
from proxy.observe import defects, logs
from proxy.settings.boot import read_settings
from proxy.settings.model import Settings

if TYPE_CHECKING:
    from proxy.authority.control_commands import ServeControl


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one child to its end and return the exit status. A failed start reports why over the ready pipe."""
    if not startup.is_same_package():
        print(f"patgate: a child process found another package, {startup.PACKAGE}", file=sys.stderr)
        return 1
    startup.harden()
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    # Ctrl-C reaches the whole process group; only the supervisor handles it, and stops its children in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    logs.configure(process=_name(options))
    defects.hook_process()
    ready_fd = options.ready_fd
    try:
        if options.orders_fd is None:
            settings = _load(options)
        elif (activated := _stand_by(options, given)) is not None:
            settings, options = activated
        else:
            return 0
        logs.configure(
            process=_name(options),
            level=settings.log.level,
            line_format=settings.log.format,
            processes=settings.workers if options.role == "gateway" else 1,
        )
        return _gateway(settings, options) if options.role == "gateway" else _authority(settings, options)
    except PatgateError as error:
        if not _report(ready_fd, ERROR + " ".join(str(error).split()).encode() + b"\n"):
            logs.get_logger("app").error("process ends", problem=str(error))
        return DATA_DIR_LOST if isinstance(error, DataDirLost) else 1
    finally:
        os.close(ready_fd)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m proxy.app", description="A child process of `patgate serve`.")
    parser.add_argument(
        "role", choices=[role + suffix for role in ("gateway", "authority") for suffix in ("", SPARE_SUFFIX)]
    )
    parser.add_argument("--boot-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--slot", type=int, default=0)
    parser.add_argument("--pseudonym", default="patgate", help="the name of this node in Via")
    parser.add_argument("--channel-fd", type=int, required=True, help="the channel to the supervisor")
    parser.add_argument("--proxy-fd", type=int, nargs="+", default=[])
    parser.add_argument("--forward-auth-fd", type=int, nargs="+", default=[])
    parser.add_argument("--ext-authz-fd", type=int, nargs="+", default=[])
    parser.add_argument("--control-fd", type=int)
    parser.add_argument("--accept-older-store", action="store_true")
    parser.add_argument("--successor", action="store_true", help="replace a child that has just died")
    parser.add_argument("--orders-fd", type=int, help="where a spare receives its command line")
    parser.add_argument("--held-fds", type=int, nargs="*", default=[], help="sockets that a spare may need")
    return parser


def _name(options: argparse.Namespace) -> str:
    return f"gateway-{options.slot}" if options.role == "gateway" else str(options.role)


def _load(options: argparse.Namespace) -> Settings:
    """Import everything that this role needs, and return the settings."""
    # Imported modules stay in memory; collecting garbage among them takes a tenth of a start.
    gc.disable()
    if options.role.removesuffix(SPARE_SUFFIX) == "gateway":
        from proxy.gateway.process import worker

        worker.loop_factory()
    else:
        from proxy.authority import process

        if options.orders_fd is not None:
            _load_control()
            process.prepare()
    settings = read_settings(options.boot_fd)
    gc.freeze()
    gc.enable()
    return settings


def _stand_by(options: argparse.Namespace, given: Sequence[str]) -> tuple[Settings, argparse.Namespace] | None:
    """Wait as a spare; the settings and the options of the child to replace, or ``None`` to end."""
    activated = standby.stand_by(
        lambda: _load(options),
        orders_fd=options.orders_fd,
        lifeline_fd=options.lifeline_fd,
        ready_fd=options.ready_fd,
    )
    if activated is None:
        return None
    settings, arguments = activated
    own_options = _parser().parse_args(arguments)
    standby.retitle(given, arguments)
    # Close the sockets of other slots, so that the kernel does not queue connections that no process accepts.
    used = (own_options.proxy_fd, own_options.forward_auth_fd, own_options.ext_authz_fd)
    for fd in {*options.held_fds}.difference(*used):
        os.close(fd)
    return settings, own_options


def _gateway(settings: Settings, options: argparse.Namespace) -> int:
    from proxy.gateway.process import worker

    return worker.run(
        settings,
        options.slot,
        {"proxy": options.proxy_fd, "forward_auth": options.forward_auth_fd, "ext_authz": options.ext_authz_fd},
        options.lifeline_fd,
        partial(_report, options.ready_fd, READY),
        options.pseudonym,
        _commands(options),
    )


def _authority(settings: Settings, options: argparse.Namespace) -> int:
    from proxy.authority import process

    return process.run(
        settings,
        options.control_fd,
        options.lifeline_fd,
        partial(_report, options.ready_fd, READY),
        options.accept_older_store,
        successor=options.successor,
        load_control=_load_control,
        commands=_commands(options),
    )


def _commands(options: argparse.Namespace) -> CommandSource:
    return supervisor_channel.ChildChannel(socket.socket(fileno=options.channel_fd))


def _load_control() -> "ServeControl":
    from proxy.control.server import serving

    return serving


@asynccontextmanager
async def offline_control(settings: Settings) -> AsyncIterator[Path]:
    """Serve the control API of a store without a running gateway, on a private socket; yields the socket's path.

    The caller holds the lock of the data directory. Raises ``PatgateError`` if the store cannot be opened.
    """
    from proxy.authority import process

    startup.harden()
    async with process.offline(settings, _load_control) as path:
        yield path


def _report(ready_fd: int, line: bytes) -> bool:
    """Report the result of the start to the supervisor; ``False`` if it has closed the ready pipe.

    It closes the pipe after the start, and when it stops.
    """
    try:
        os.write(ready_fd, line)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
