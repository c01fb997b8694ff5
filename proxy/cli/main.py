"""The ``patgate`` command; imports each subcommand only when it is used, so that a health check starts fast."""

import importlib
import sys
from typing import Final

import click

from proxy import __version__
from proxy.cli import early_signals

COMMANDS: Final = {
    "quickstart": "proxy.cli.commands.quickstart:quickstart",
    "serve": "proxy.cli.commands.serve:serve",
    "check": "proxy.cli.commands.check:check",
    "config": "proxy.cli.commands.config:config",
    "user": "proxy.cli.commands.user:user",
    "org": "proxy.cli.commands.org:org",
    "invitation": "proxy.cli.commands.invitation:invitation",
    "role": "proxy.cli.commands.role:role",
    "token": "proxy.cli.commands.token:token",
    "key": "proxy.cli.commands.key:key",
    "policy": "proxy.cli.commands.policy:policy",
    "explain": "proxy.cli.commands.explain:explain",
    "audit": "proxy.cli.commands.audit:audit",
    "routes": "proxy.cli.commands.routes:routes",
    "nodes": "proxy.cli.commands.nodes:nodes",
    "doctor": "proxy.cli.commands.doctor:doctor",
    "whoami": "proxy.cli.commands.whoami:whoami",
    "health": "proxy.cli.commands.health:health",
}
"""In the order in which the help shows them."""
_ALIASES: Final = {"roles": "role"}


class LazyGroup(click.Group):
    """A group that imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or ``None`` for an unknown name, which is a usage error."""
        found = COMMANDS.get(_ALIASES.get(cmd_name, cmd_name))
        if found is None:
            return None
        module, _, name = found.partition(":")
        command = getattr(importlib.import_module(module), name)
        return command if isinstance(command, click.Command) else None


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="patgate")
def patgate() -> None:
    """Personal access tokens for HTTP APIs that have none of their own."""


def main() -> None:
    """Run the command line. Exit statuses: 0, 1 (refused, with the reason on standard error), 2 (usage)."""
    early_signals.listen()
    if sys.argv[1:2] == ["serve"]:
        early_signals.keep_hangups()
    try:
        patgate(prog_name="patgate")
    except BrokenPipeError:  # `patgate token list | head`
        sys.stderr.close()
        sys.exit(1)
