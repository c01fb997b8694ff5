"""``patgate whoami``: an echo backend that shows what it received, for trying routes and identity headers."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Final

import click
from aiohttp import web

from proxy.cli.options import Invocation, command
from proxy.observe import defects, logs
from proxy.settings.addresses import Bind
from proxy.supervisor import listeners
from proxy.supervisor.errors import ListenerRefused

DEFAULT: Final = "127.0.0.1:3000"


def echo(server: str) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """A handler that answers every request with what it received; the body is only counted, never kept."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        length = 0
        async for chunk in request.content.iter_any():
            length += len(chunk)
        seen = {
            "method": request.method,
            "path": request.raw_path,
            "headers": [[k.decode("latin-1"), v.decode("latin-1")] for k, v in request.raw_headers],
            "body_length": length,
            "peer": request.remote,
            "server": server,
        }
        return web.json_response(seen, dumps=lambda value: json.dumps(value, indent=2) + "\n")

    return answer


class BindType(click.ParamType[Bind]):
    """An address such as ``127.0.0.1:3000`` or ``[::1]:3000``; with port 0 the system chooses."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Bind:
        """Parse an address; raises a usage error for anything else."""
        try:
            return value if isinstance(value, Bind) else Bind.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.option("--bind", type=BindType(), default=DEFAULT, show_default=True, help="Where to listen.")
@click.option("--lifeline-fd", type=int, hidden=True, help="End when this descriptor reads end-of-file.")
@command
def whoami(invocation: Invocation, bind: Bind, lifeline_fd: int | None) -> None:
    """An echo backend that shows what it received.

    Answers every request with JSON: method, path and headers as they arrived, and the length of the body.
    """
    # Log output caused by clients is bounded here too, and standard output is for the result.
    logs.configure(process="whoami")
    defects.hook_process()
    asyncio.run(_run(invocation, bind, lifeline_fd))


async def _run(invocation: Invocation, bind: Bind, lifeline_fd: int | None) -> None:
    listener = listeners.listen("whoami", bind.host, bind.port)
    url = f"http://{listener.address}"
    # It must show what it received: compressed bodies are not unpacked.
    runner = web.ServerRunner(web.Server(echo(listener.address), auto_decompress=False, access_log=None))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    defects.install(loop)
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    if lifeline_fd is not None:
        os.set_blocking(lifeline_fd, False)
        loop.add_reader(lifeline_fd, stop.set)
    try:
        await runner.setup()
        await web.SockSite(runner, listener.sockets[0], shutdown_timeout=1.0).start()
        invocation.out.document({"address": listener.address, "url": url})
        invocation.out.line(f"whoami answers on {url}")
        await stop.wait()
    except OSError as error:
        raise ListenerRefused(f"The whoami listener cannot use {listener.address}: {error.strerror}.") from error
    finally:
        if lifeline_fd is not None:
            loop.remove_reader(lifeline_fd)
        await runner.cleanup()
        listener.close()
