"""``patgate nodes``: lists the nodes of the store, and accepts a store that this node refuses."""

import time
from datetime import datetime
from typing import Final

import click
from click.core import ParameterSource

from proxy.cli.client import Json, call
from proxy.cli.options import Invocation, command
from proxy.cli.output import plain

_COLUMNS: Final = {
    "this": "",
    "name": "NODE",
    "id": "ID",
    "version": "VERSION",
    "applied": "CHANGE",
    "lease": "LEASE",
    "up": "UP",
    "config": "CONFIG",
}
_NAME: Final = 12
_ID: Final = 8
_VERSION: Final = 8
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"))
_QUESTION: Final = (
    "This node refuses its store because it misses changes that the node has seen, or is another database.\n"
    "Whatever was revoked in those changes is valid again once you accept the store.\n"
    "Accept the store as it is?"
)


@click.group(invoke_without_command=True)
@command
def nodes(invocation: Invocation) -> None:
    """List the nodes of the store, the oldest first.

    LEASE is what is left of a node's lease, and its length. CONFIG says whether its configuration is that of this
    node, which has a star.
    """
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        given = (context.get_parameter_source(name) for name in context.params)
        if any(source is ParameterSource.COMMANDLINE for source in given):
            raise click.UsageError(f"Write options after `{context.invoked_subcommand}`.")
        return
    listed = call(invocation.settings(), lambda control: control.every("/nodes"))
    invocation.out.document(listed)
    now = time.time()
    invocation.out.table(_COLUMNS, [_row(node, now) for node in listed], "No node has joined this store.")
    other = sum(not node["config_matches"] for node in listed)
    if other:
        invocation.out.note(f"warning: {other} of {len(listed)} nodes have another configuration than this one.")


@nodes.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@command
def accept(invocation: Invocation, yes: bool) -> None:
    """Accept the store that this node refuses since a failover or a restored backup.

    It takes as long as the longest lease of any node.
    """
    settings = invocation.settings()
    if not yes:
        click.confirm(_QUESTION, abort=True, err=True)
    result = call(settings, lambda control: control.post("/nodes/accept"))
    invocation.out.document(result)
    invocation.out.line("The store is accepted.")


def _row(node: Json, now: float) -> Json:
    up = now - datetime.fromisoformat(node["started_at"]).timestamp()
    return {
        "this": "*" if node["self"] else "",
        "name": _cut(node["name"], _NAME),
        "id": node["id"][:_ID],
        "version": _cut(node["version"], _VERSION),
        "applied": node["applied"],
        "lease": f"{node['lease_seconds']:.1f}/{node['lease']:g}s",
        "up": _duration(up),
        "config": "same" if node["config_matches"] else "other",
    }


def _cut(text: str, most: int) -> str:
    shown = plain(text)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def _duration(seconds: float) -> str:
    """The two largest units of a duration: ``3d 4h``."""
    parts: list[str] = []
    rest = max(0, int(seconds))
    for size, unit in _UNITS:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) if parts else f"{rest}s"
