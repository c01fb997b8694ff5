"""``patgate invitation``: lists, accepts, declines and withdraws invitations to organisations."""

from typing import Final

import click

from proxy.cli.client import Json, call, segment
from proxy.cli.commands.token_lifecycle import warn
from proxy.cli.listing import Part, listed, show_list
from proxy.cli.options import Invocation, command
from proxy.cli.output import plain

COLUMNS: Final = {
    "id": "ID",
    "email": "EMAIL",
    "org": "ORG",
    "role": "ROLE",
    "created_at": "INVITED",
    "expires_at": "EXPIRES",
}


@click.group()
def invitation() -> None:
    """Invitations to organisations: created with `patgate org invite`, and open until they are answered or expire."""


@invitation.command("list")
@click.option("--org", help="Only those to this organisation.")
@click.option("--email", metavar="EMAIL", help="Only those for this email.")
@command
@listed()
def list_invitations(invocation: Invocation, part: Part, org: str | None, email: str | None) -> None:
    """List the open invitations, oldest first."""
    query = {"org": org, "email": email}
    show_list(invocation, "/invitations", query, part, COLUMNS, "There are no open invitations.")


@invitation.command()
@click.argument("reference", metavar="ID")
@command
def show(invocation: Invocation, reference: str) -> None:
    """Show an open invitation."""
    path = f"/invitations/{segment(reference)}"
    show_invitation(invocation, call(invocation.settings(), lambda control: control.get(path)))


@invitation.command()
@click.argument("reference", metavar="ID")
@command
def accept(invocation: Invocation, reference: str) -> None:
    """Accept an invitation on behalf of the person with that email, who becomes a member."""
    path = f"/invitations/{segment(reference)}/accept"
    view = call(invocation.settings(), lambda control: control.post(path))
    invocation.out.document(view)
    invocation.out.line(f"{plain(view['email'])} is a member now, with the role {plain(view['role'])}.")


@invitation.command()
@click.argument("reference", metavar="ID")
@command
def decline(invocation: Invocation, reference: str) -> None:
    """Decline an invitation on behalf of the person with that email."""
    path = f"/invitations/{segment(reference)}/decline"
    _ended(invocation, call(invocation.settings(), lambda control: control.post(path)), "declined")


@invitation.command()
@click.argument("reference", metavar="ID")
@command
def withdraw(invocation: Invocation, reference: str) -> None:
    """Withdraw an invitation."""
    path = f"/invitations/{segment(reference)}"
    _ended(invocation, call(invocation.settings(), lambda control: control.delete(path)), "withdrawn")


def show_invitation(invocation: Invocation, view: Json) -> None:
    """Print an invitation."""
    warn(invocation, view)
    invocation.out.document(view)
    facts = [(title.lower(), view[key]) for key, title in COLUMNS.items() if key != "email"]
    invocation.out.facts(str(view["email"]), facts)


def _ended(invocation: Invocation, view: Json, how: str) -> None:
    invocation.out.document(view)
    invocation.out.line(f"The invitation of {plain(view['email'])} to {plain(view['org'])} is {how}.")
