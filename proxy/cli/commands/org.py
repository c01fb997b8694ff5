"""``patgate org``: organisations, their members and invitations to them."""

import click

from proxy.cli.client import Json, call, segment
from proxy.cli.commands.invitation import show_invitation
from proxy.cli.commands.token_lifecycle import warn
from proxy.cli.listing import Part, listed, show_list
from proxy.cli.options import DURATION, Invocation, command

COLUMNS = {"name": "NAME", "id": "ID", "status": "STATUS", "members": "MEMBERS", "created_at": "CREATED"}

MEMBERS = {"email": "EMAIL", "name": "NAME", "role": "ROLE", "status": "STATUS", "created_at": "JOINED"}


@click.group()
def org() -> None:
    """Organisations: a token created in one reaches only that one."""


@org.command()
@click.argument("name")
@command
def add(invocation: Invocation, name: str) -> None:
    """Add an organisation."""
    view = call(invocation.settings(), lambda control: control.post("/orgs", {"name": name}), makes_store=True)
    _show(invocation, view)


@org.command("list")
@command
@listed()
def list_orgs(invocation: Invocation, part: Part) -> None:
    """List the organisations, oldest first."""
    empty = "There are no organisations yet; add one with `patgate org add NAME`."
    show_list(invocation, "/orgs", {}, part, COLUMNS, empty)


@org.command()
@click.argument("name")
@command
def show(invocation: Invocation, name: str) -> None:
    """Show one organisation."""
    _show(invocation, call(invocation.settings(), lambda control: control.get(f"/orgs/{segment(name)}")))


@org.command()
@click.argument("name")
@command
def suspend(invocation: Invocation, name: str) -> None:
    """Refuse every token of an organisation until it is resumed."""
    _show(invocation, call(invocation.settings(), lambda control: control.post(f"/orgs/{segment(name)}/suspend")))


@org.command()
@click.argument("name")
@command
def resume(invocation: Invocation, name: str) -> None:
    """Let a suspended organisation's tokens work again."""
    _show(invocation, call(invocation.settings(), lambda control: control.post(f"/orgs/{segment(name)}/resume")))


@org.command()
@click.argument("name")
@command
@listed()
def members(invocation: Invocation, part: Part, name: str) -> None:
    """List the members of an organisation, with their roles there."""
    empty = "It has no members; invite people with `patgate org invite NAME EMAIL --role ROLE`."
    show_list(invocation, f"/orgs/{segment(name)}/members", {}, part, MEMBERS, empty)


@org.command()
@click.argument("name")
@click.argument("email")
@click.option("--role", required=True, help="The role that they get when they accept.")
@click.option("--expires", type=DURATION, help="How long the invitation is open, such as 7d.")
@command
def invite(invocation: Invocation, name: str, email: str, role: str, expires: float | None) -> None:
    """Invite a person to an organisation; they become a member when they accept."""
    path, body = f"/orgs/{segment(name)}/invitations", {"email": email, "role": role, "expires": expires}
    show_invitation(invocation, call(invocation.settings(), lambda control: control.post(path, body)))


@org.command("remove-member")
@click.argument("name")
@click.argument("email")
@command
def remove_member(invocation: Invocation, name: str, email: str) -> None:
    """Remove a member; the person's tokens of that organisation are refused from now on."""
    path = f"/orgs/{segment(name)}/members/{segment(email)}"
    view = call(invocation.settings(), lambda control: control.delete(path))
    invocation.out.document(view)
    invocation.out.line(f"{email} is no longer in {name}.")


def _show(invocation: Invocation, view: Json) -> None:
    warn(invocation, view)
    invocation.out.document(view)
    facts = [(title.lower(), view.get(key)) for key, title in COLUMNS.items() if key != "name" and key in view]
    invocation.out.facts(str(view.get("name", "")), facts)
