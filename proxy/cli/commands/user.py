"""``patgate user``: adds, suspends and removes people, and changes their roles."""

import click

from proxy.cli.client import Json, call, segment
from proxy.cli.commands.token_lifecycle import warn
from proxy.cli.listing import Part, listed, show_list
from proxy.cli.options import Invocation, command

COLUMNS = {"email": "EMAIL", "name": "NAME", "role": "ROLE", "status": "STATUS", "id": "ID", "created_at": "CREATED"}


@click.group()
def user() -> None:
    """People: add them, change their role, suspend or remove them. Changes apply to their tokens at once."""


@user.command()
@click.argument("email")
@click.option(
    "--role",
    required=True,
    help="Their role in the account, or with --org in that organisation; see `patgate role list`.",
)
@click.option("--org", help="Make them a member of this organisation.")
@click.option("--name", default="", help="Their name.")
@command
def add(invocation: Invocation, email: str, role: str, org: str | None, name: str) -> None:
    """Add a person; with --org, make them a member of an organisation."""
    body = {"email": email, "role": role, "org": org, "name": name}
    view = call(invocation.settings(), lambda control: control.post("/users", body), makes_store=True)
    _show(invocation, view)


@user.command("list")
@command
@listed()
def list_users(invocation: Invocation, part: Part) -> None:
    """List all users, oldest first."""
    empty = "There are no users yet; add one with `patgate user add EMAIL --role ROLE`."
    show_list(invocation, "/users", {}, part, COLUMNS, empty)


@user.command()
@click.argument("email")
@command
def show(invocation: Invocation, email: str) -> None:
    """Show one person and their organisations."""
    _show(invocation, call(invocation.settings(), lambda control: control.get(f"/users/{segment(email)}")))


@user.command("set-role")
@click.argument("email")
@click.argument("role")
@click.option("--org", help="Change their role in this organisation, instead of the account.")
@command
def set_role(invocation: Invocation, email: str, role: str, org: str | None) -> None:
    """Change a person's role; it applies to all their tokens from the next request on."""
    body = {"role": role, "org": org}
    _show(invocation, call(invocation.settings(), lambda control: control.post(f"/users/{segment(email)}/role", body)))


@user.command()
@click.argument("email")
@command
def suspend(invocation: Invocation, email: str) -> None:
    """Suspend a person and all their tokens until they are resumed."""
    _show(invocation, call(invocation.settings(), lambda control: control.post(f"/users/{segment(email)}/suspend")))


@user.command()
@click.argument("email")
@command
def resume(invocation: Invocation, email: str) -> None:
    """Resume a suspended person and their tokens."""
    _show(invocation, call(invocation.settings(), lambda control: control.post(f"/users/{segment(email)}/resume")))


@user.command()
@click.argument("email")
@command
def remove(invocation: Invocation, email: str) -> None:
    """Remove a person permanently; their tokens never work again."""
    view = call(invocation.settings(), lambda control: control.delete(f"/users/{segment(email)}"))
    invocation.out.document(view)
    invocation.out.line(f"{email} is removed, and all their tokens are revoked.")


def _show(invocation: Invocation, view: Json) -> None:
    warn(invocation, view)
    invocation.out.document(view)
    memberships = [f"{m['org']}: {m['role']}" for m in view.get("memberships", ())]
    facts = [(title.lower(), view.get(key)) for key, title in COLUMNS.items() if key != "email"]
    if memberships:
        facts.append(("organisations", ", ".join(memberships)))
    invocation.out.facts(str(view.get("email", "")), facts)
