"""``patgate config``: prints the schema of the configuration file."""

import json

import click

from proxy.cli.options import Invocation, command
from proxy.settings.schema import json_schema


@click.group()
def config() -> None:
    """About the configuration file."""


@config.command()
@command
def schema(invocation: Invocation) -> None:
    """Print the JSON Schema of the configuration, for editors."""
    click.echo(json.dumps(json_schema(), indent=2))
