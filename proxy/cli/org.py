"""`patgate org`: organisations, to which tokens may be bound."""

import click

from proxy.cli.client import Json, ask, segment
from proxy.cli.life import warn
from proxy.cli.options import Invocation, command

COLUMNS = {"name": "NAME", "id": "ID", "status": "STATUS", "members": "MEMBERS", "created_at": "CREATED"}

MEMBERS = {"email": "EMAIL", "name": "NAME", "role": "ROLE", "status": "STATUS", "created_at": "JOINED"}


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


@org.command()
@click.argument("name")
@command
def suspend(invocation: Invocation, name: str) -> None:
    """Refuse every token of an organisation, until resumed."""
    _show(invocation, ask(invocation.settings(), lambda control: control.post(f"/orgs/{segment(name)}/suspend")))


@org.command()
@click.argument("name")
@command
def resume(invocation: Invocation, name: str) -> None:
    """Let a suspended organisation's tokens work again."""
    _show(invocation, ask(invocation.settings(), lambda control: control.post(f"/orgs/{segment(name)}/resume")))


@org.command()
@click.argument("name")
@command
def members(invocation: Invocation, name: str) -> None:
    """List who is in an organisation, with their roles there."""
    rows = ask(invocation.settings(), lambda control: control.every(f"/orgs/{segment(name)}/members"))
    invocation.out.document(rows)
    invocation.out.table(
        MEMBERS, rows, "Nobody is in it; add people with `patgate user add EMAIL --role ROLE --org ORG`."
    )


@org.command("remove-member")
@click.argument("name")
@click.argument("email")
@command
def remove_member(invocation: Invocation, name: str, email: str) -> None:
    """End a membership; the person's tokens of that organisation are refused from now on."""
    path = f"/orgs/{segment(name)}/members/{segment(email)}"
    view = ask(invocation.settings(), lambda control: control.delete(path))
    invocation.out.document(view)
    invocation.out.line(f"{email} is no longer in {name}.")


def _show(invocation: Invocation, view: Json) -> None:
    warn(invocation, view)
    invocation.out.document(view)
    facts = [(title.lower(), view.get(key)) for key, title in COLUMNS.items() if key != "name" and key in view]
    invocation.out.facts(str(view.get("name", "")), facts)
