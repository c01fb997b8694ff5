"""`patgate org`: organisations, to which tokens may be bound."""

import click

from proxy.cli.client import Json, ask, segment
from proxy.cli.options import Invocation, command

COLUMNS = {"name": "NAME", "id": "ID", "status": "STATUS", "members": "MEMBERS", "created_at": "CREATED"}


@click.group()
def org() -> None:
    """Organisations: a token made in one reaches that one only."""


@org.command()
@click.argument("name")
@command
def add(invocation: Invocation, name: str) -> None:
    """Add an organisation."""
    _show(invocation, ask(invocation.settings(), lambda control: control.post("/orgs", {"name": name})))


@org.command("list")
@command
def list_orgs(invocation: Invocation) -> None:
    """List the organisations."""
    rows = ask(invocation.settings(), lambda control: control.every("/orgs"))
    invocation.out.document(rows)
    invocation.out.table(COLUMNS, rows, "There are no organisations yet; add one with `patgate org add NAME`.")


@org.command()
@click.argument("name")
@command
def show(invocation: Invocation, name: str) -> None:
    """Show one organisation."""
    _show(invocation, ask(invocation.settings(), lambda control: control.get(f"/orgs/{segment(name)}")))


def _show(invocation: Invocation, view: Json) -> None:
    invocation.out.document(view)
    facts = [(title.lower(), view.get(key)) for key, title in COLUMNS.items() if key != "name" and key in view]
    invocation.out.facts(str(view.get("name", "")), facts)
