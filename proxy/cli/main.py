"""The `patgate` command and its nouns, each imported only when it is used: a health check loads no table printer."""

import importlib
import os
import sys
from typing import Final

import click

from proxy import __version__

COMMANDS: Final = {
    "quickstart": "proxy.cli.quickstart:quickstart",
    "serve": "proxy.cli.serve:serve",
    "check": "proxy.cli.check:check",
    "config": "proxy.cli.config:config",
    "user": "proxy.cli.user:user",
    "org": "proxy.cli.org:org",
    "role": "proxy.cli.role:role",
    "token": "proxy.cli.token:token",
    "key": "proxy.cli.key:key",
    "policy": "proxy.cli.policy:policy",
    "explain": "proxy.cli.explain:explain",
    "audit": "proxy.cli.audit:audit",
    "routes": "proxy.cli.routes:routes",
    "whoami": "proxy.cli.whoami:whoami",
    "health": "proxy.cli.health:health",
}
"""In the order in which the help shows them."""


class Nouns(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or `None` for an unknown name, which is a usage error."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        found = getattr(importlib.import_module(module), name)
        return found if isinstance(found, click.Command) else None


@click.command(cls=Nouns, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="patgate")
def patgate() -> None:
    """Personal access tokens in front of HTTP APIs that know nothing of them."""


def main() -> None:
    """The console script. Exit statuses: 0, 1 (refused, said on standard error), 2 (usage)."""
    # What patgate and its children write is for their user alone, whatever the shell or the service manager has set.
    os.umask(0o077)
    try:
        patgate(prog_name="patgate")
    except BrokenPipeError:  # `patgate token list | head`
        sys.stderr.close()
        sys.exit(1)
