"""`patgate serve`: run the gateway."""

import asyncio

import click

from proxy.cli.options import Invocation, command
from proxy.observe import logs
from proxy.supervisor import Supervisor


@click.command()
@click.option("--workers", type=click.IntRange(1, 256), help="Gateway processes; overrides the configuration.")
@click.option(
    "--accept-older-store",
    is_flag=True,
    help="Serve a restored backup of the store: what was revoked since may be back.",
)
@command
def serve(invocation: Invocation, workers: int | None, accept_older_store: bool) -> None:
    """Run the gateway until SIGTERM or SIGINT; a second signal ends it at once.

    With --json the addresses are printed as one document once requests are answered.
    """
    settings = invocation.settings()
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})
    logs.configure(process="supervisor", level=settings.log.level, line_format=settings.log.format)
    supervisor = Supervisor(settings, accept_older_store=accept_older_store)

    async def serving(addresses: object) -> None:
        invocation.out.document({"addresses": addresses})

    asyncio.run(supervisor.run(serving))
