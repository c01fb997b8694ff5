"""``patgate health``: asks the gateway over its control socket whether it is alive, for a container's HEALTHCHECK."""

import asyncio

import click

from proxy.cli.client import Control
from proxy.cli.options import REFUSED, Invocation, command
from proxy.supervisor.datadir import CONTROL_SOCKET


@click.command()
@click.option("--ready", is_flag=True, help="Check that it can serve requests, not only that it is alive.")
@command
def health(invocation: Invocation, ready: bool) -> None:
    """Exit 0 when the gateway of this configuration answers, 1 when it does not."""
    settings = invocation.settings()
    probe = "/readyz" if ready else "/livez"
    healthy = asyncio.run(Control(settings.data_dir / CONTROL_SOCKET).healthy(probe))
    invocation.out.document({"ok": healthy, "probe": probe})
    if not healthy:
        invocation.out.note(f"The gateway on {settings.data_dir} does not answer {probe} with 200.")
        raise SystemExit(REFUSED)
    invocation.out.line("ok")
