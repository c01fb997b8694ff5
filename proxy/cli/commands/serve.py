"""``patgate serve``: runs the gateway."""

import asyncio
import os

import click

from proxy import startup
from proxy.cli import early_signals
from proxy.cli.options import Invocation, command
from proxy.observe import defects, logs
from proxy.settings import rules
from proxy.settings.compile import identity_outputs, route_table
from proxy.settings.model import Settings
from proxy.settings.problems import path_of
from proxy.settings.sources import environment
from proxy.settings.store_urls import is_shared
from proxy.supervisor import Supervisor


class Configuration:
    """Reads the configuration with this command's options, at the start and at each reload."""

    def __init__(self, invocation: Invocation, workers: int | None) -> None:
        self._invocation = invocation
        self._workers = workers
        self.path = invocation.config_path().absolute()

    def __call__(self) -> Settings:
        """Read and validate it. Raises ``ConfigurationError``."""
        settings = self._invocation.settings()
        route_table(settings)
        identity_outputs(settings)
        return settings if self._workers is None else settings.model_copy(update={"workers": self._workers})


@click.command()
@click.option("--workers", type=click.IntRange(1, 120), help="Gateway processes; overrides the configuration.")
@click.option(
    "--accept-older-store",
    is_flag=True,
    help="Serve a restored backup of the store; tokens revoked since the backup work again.",
)
@command
def serve(invocation: Invocation, workers: int | None, accept_older_store: bool) -> None:
    """Run the gateway until SIGTERM or SIGINT; a second signal ends it at once. SIGHUP reloads the configuration.

    With --json the addresses are printed as one document once requests are answered.
    """
    load = Configuration(invocation, workers)
    settings = load()
    if accept_older_store and is_shared(settings.store):
        # Among several nodes one answer counts for all, and is an audited change.
        raise click.UsageError(
            "--accept-older-store is for the embedded store. Start without it: a node that finds an older store in "
            "PostgreSQL refuses it, until you accept it with patgate nodes accept."
        )
    logs.configure(process="supervisor", level=settings.log.level, line_format=settings.log.format)
    defects.hook_process()
    startup.harden()
    for warning in rules.warnings(settings):
        logs.get_logger("configuration").warning(warning.message, setting=path_of(warning.loc))
    for name in environment.ignored(os.environ):
        logs.get_logger("configuration").warning("a variable names no setting and is ignored", variable=name)
    supervisor = Supervisor(settings, accept_older_store=accept_older_store, load=load)

    async def serving(addresses: object) -> None:
        if early_signals.hung_up():
            supervisor.reload()
        invocation.out.document({"addresses": addresses})

    async def run() -> None:
        try:
            await supervisor.run(serving)
        finally:
            early_signals.ignore()

    asyncio.run(run())
