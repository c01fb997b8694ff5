"""``patgate quickstart``: starts a gateway with one user and one token, in one command.

It writes a configuration into the data directory, runs a gateway on it (and, without ``--upstream``, an echo backend
behind it), creates one administrator with one token, and prints requests to try. A second run in the same directory
keeps the configuration and the users, and gives the token a new secret, because the old one cannot be shown again.
"""

import asyncio
import os
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import click

from proxy import startup
from proxy.cli.client import Control, ControlRefused, Json, segment
from proxy.cli.commands.quickstart_steps import (
    ADMIN,
    DEMO_BACKEND,
    QuickstartStep,
    configuration,
    demo_steps,
    perform,
    upstream_steps,
)
from proxy.cli.commands.whoami import DEFAULT as WHOAMI
from proxy.cli.options import REFUSED, Invocation, command
from proxy.observe import defects, logs
from proxy.settings.addresses import Bind
from proxy.settings.load import load
from proxy.settings.model import Settings
from proxy.supervisor import Supervisor, datadir, listeners
from proxy.supervisor.errors import StartupRefused

HOST: Final = "127.0.0.1"
PORT: Final = 8080
LABEL: Final = "quickstart"
CONFIG: Final = "patgate.yaml"
LOG: Final = "patgate.log"


@click.command()
@click.option("--upstream", metavar="URL", help="Your API; without it an echo backend is started.")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("patgate-data"),
    show_default=True,
    help="Directory for all data.",
)
@click.option("--port", type=click.IntRange(1, 65534), help=f"Where to listen; {PORT} if it is free.")
@click.option("--once", is_flag=True, help="Send the printed requests, show the responses, and end.")
@command
def quickstart(invocation: Invocation, upstream: str | None, data: Path, port: int | None, once: bool) -> None:
    """Start a gateway with one admin and one token, without any configuration."""
    startup.harden()
    data = data.resolve()
    datadir.prepare(data)
    datadir.exists(data / LOG)
    with open(data / LOG, "a", encoding="utf-8", opener=_private) as log:
        logs.configure(process="supervisor", stream=log)
        defects.hook_process()
        run = _Quickstart(invocation, data, once)
        expected = asyncio.run(run.run(upstream, port, log.fileno()))
    if not expected:
        raise SystemExit(REFUSED)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


class _Quickstart:
    def __init__(self, invocation: Invocation, data: Path, once: bool) -> None:
        self._out = invocation.out
        self._data = data
        self._once = once
        self._config = data / CONFIG
        self._as_expected = True

    async def run(self, upstream: str | None, port: int | None, log_fd: int) -> bool:
        """Serve until a stop; returns whether every request that was sent had the expected status."""
        written = self._config.read_text("utf-8") if datadir.exists(self._config) else None
        demo = upstream is None and (written is None or DEMO_BACKEND in written)
        async with AsyncExitStack() as stack:
            if demo:
                upstream = await stack.enter_async_context(_echo_backend(log_fd))
            settings = self._settings(written, upstream, port, demo)
            supervisor = Supervisor(settings, stderr_fd=log_fd, purpose="quickstart")

            async def serving(addresses: Mapping[str, str]) -> None:
                await self._introduce(settings, addresses["proxy"], demo)
                if self._once:
                    supervisor.stop()

            await supervisor.run(serving)
        return self._as_expected

    def _settings(self, written: str | None, upstream: str | None, port: int | None, demo: bool) -> Settings:
        """The configuration in the data directory, created if necessary, with this run's ports and upstream."""
        if written is None:
            self._config.write_text(
                configuration(
                    data_dir=self._data,
                    proxy=f"{HOST}:{self._choose(port, PORT)}",
                    control=f"{HOST}:{self._choose(None if port is None else port + 1, PORT + 1)}",
                    upstream=upstream or "",
                    demo=demo,
                ),
                "utf-8",
            )
            return load(self._config, os.environ)
        overrides = dict(os.environ)
        if upstream is not None:
            overrides["PATGATE_UPSTREAMS__APP__SERVERS"] = f'["{upstream}"]'
        listen = load(self._config, overrides).listen
        overrides["PATGATE_LISTEN__PROXY__BIND"] = str(self._rebind(listen.proxy.bind, port))
        overrides["PATGATE_LISTEN__CONTROL__BIND"] = str(self._rebind(listen.control.bind, None))
        return load(self._config, overrides)

    def _choose(self, wanted: int | None, default: int) -> int:
        """The requested port, else the default, else a free one, with a note."""
        if wanted is not None:
            return wanted
        if listeners.free(HOST, default):
            return default
        with listeners.listen("quickstart", HOST, 0) as free:
            chosen = free.port
        self._out.note(f"Port {default} is taken; this gateway uses {chosen}.")
        return chosen

    def _rebind(self, bind: Bind, wanted: int | None) -> Bind:
        return Bind(host=bind.host, port=self._choose(wanted, bind.port) if bind.port else 0)

    async def _introduce(self, settings: Settings, address: str, demo: bool) -> None:
        created, renewed = await _token(Control(settings.data_dir / datadir.CONTROL_SOCKET))
        token = str(created["token"])
        steps = demo_steps(address, token) if demo else upstream_steps(address, token)
        results = await perform(steps) if self._once else None
        self._out.document(
            {
                "url": f"http://{address}",
                "config": str(self._config),
                "data_dir": str(self._data),
                "user": ADMIN,
                "token": token,
                "prefix": created["prefix"],
                "requests": [step.as_dict() for step in steps],
                "results": results,
            }
        )
        self._print(address, token, renewed, steps)
        for step, result in zip(steps, results or (), strict=False):
            matched = result["status"] == step.expect
            self._as_expected = self._as_expected and matched
            verdict = "as expected" if matched else f"expected {step.expect}"
            self._out.line(f"{result['status']} {result['reason']}  {step.method} {step.path}  ({verdict})")

    def _print(self, address: str, token: str, renewed: bool, steps: tuple[QuickstartStep, ...]) -> None:
        line = self._out.line
        line(f"\npatgate answers on http://{address}\n")
        line(f"The token of {ADMIN}, shown only once:\n")
        line(f"  {token}\n")
        if renewed:
            line("It has a new secret: the one that an earlier quickstart printed no longer works.\n")
        line("Try:\n")
        for step in steps:
            line(f"  {step.curl}")
            line(f"      {step.expect}: {step.why}\n")
        line("Change the role of its owner, and the second request is refused:\n")
        line(f"  {_program()} user set-role {ADMIN} viewer --config {shlex.quote(str(self._config))}\n")
        line(f"Configuration: {self._config} (continue with `{_program()} serve --config …`)")
        line(f"Log:           {self._data / LOG}")
        if not self._once:
            line("Ctrl-C ends it.")


def _program() -> str:
    """The command as the user can type it: its name, or its path where the name finds nothing (``make demo``)."""
    own = Path(sys.argv[0])
    return shlex.quote(str(own)) if own.name == "patgate" and shutil.which("patgate") is None else "patgate"


async def _token(control: Control) -> tuple[Json, bool]:
    """The administrator's token with a new secret, and whether an earlier secret was replaced."""
    try:
        await control.get(f"/users/{segment(ADMIN)}")
    except ControlRefused as refused:
        if refused.status != 404:
            raise
        await control.post("/users", {"email": ADMIN, "role": "admin"})
    for known in await control.every("/tokens", {"user": ADMIN, "status": "active"}):
        if known["name"] == LABEL:
            return await control.post(f"/tokens/{known['id']}/rotate"), True
    return await control.post("/tokens", {"user": ADMIN, "name": LABEL}), False


@asynccontextmanager
async def _echo_backend(log_fd: int) -> AsyncIterator[str]:
    """Run ``patgate whoami`` on its documented port, or on a free one. Yields its URL. Raises ``StartupRefused``."""
    default = Bind.parse(WHOAMI)
    any_port = Bind(host=default.host, port=0)
    # Another process, such as a second quickstart, may take the port in between.
    for bind in (default, any_port) if listeners.free(default.host, default.port) else (any_port,):
        async with _echo_on(bind, log_fd) as url:
            if url is not None:
                yield url
                return
    raise StartupRefused("The echo backend did not start; the log in the data directory says why.")


@asynccontextmanager
async def _echo_on(bind: Bind, log_fd: int) -> AsyncIterator[str | None]:
    """Run ``patgate whoami`` in a process that ends with this one, however this one ends.

    Yields its URL; ``None`` when it did not start.
    """
    import json

    lifeline_in, lifeline_out = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *startup.program("proxy"),
            *("whoami", "--json"),
            *("--bind", str(bind), "--lifeline-fd", str(lifeline_in)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=log_fd,
            pass_fds=(lifeline_in,),
            process_group=0,
            env=startup.environment(os.environ),
        )
        try:
            stdout = process.stdout
            document = b""
            while stdout is not None and (line := await stdout.readline()):
                document += line
                if line == b"}\n":
                    break
            # A command that cannot start prints a document too, with the reason and no URL.
            yield json.loads(document).get("url") if document.endswith(b"}\n") else None
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
    finally:
        os.close(lifeline_in)
        os.close(lifeline_out)
