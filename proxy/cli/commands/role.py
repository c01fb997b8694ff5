"""``patgate role``: lists, shows and sets the permissions of roles."""

import click

from proxy.cli.client import Json, call, segment
from proxy.cli.listing import Part, listed, show_whole
from proxy.cli.options import Invocation, command

COLUMNS = {"name": "ROLE", "permissions": "PERMISSIONS", "source": "FROM", "updated_at": "CHANGED"}


@click.group()
def role() -> None:
    """Roles: named sets of permissions, from the configuration or set by hand."""


@role.command("list")
@command
@listed(cursor=False)
def list_roles(invocation: Invocation, part: Part) -> None:
    """List the roles and their permissions."""
    rows = call(invocation.settings(), lambda control: control.every("/roles"))
    empty = "There are no roles yet; define them in the configuration or with `patgate role set`."
    show_whole(invocation, rows, part, COLUMNS, empty)


@role.command()
@click.argument("name")
@command
def show(invocation: Invocation, name: str) -> None:
    """Show one role."""
    _show(invocation, call(invocation.settings(), lambda control: control.get(f"/roles/{segment(name)}")))


@role.command("set")
@click.argument("name")
@click.argument("permissions", nargs=-1, required=True, metavar="PERMISSION...")
@command
def set_role(invocation: Invocation, name: str, permissions: tuple[str, ...]) -> None:
    """Set the permissions of a role, such as `things:read` or `*:*`; a new role is created.

    They apply to everyone with the role from the next request on.
    """
    body = {"permissions": list(permissions)}
    path = f"/roles/{segment(name)}"
    _show(invocation, call(invocation.settings(), lambda control: control.put(path, body), makes_store=True))


@role.command()
@command
def apply(invocation: Invocation) -> None:
    """Apply the roles of this node's configuration, also if newer ones of another node were applied after them.

    The other nodes then do not apply theirs by themselves any more.
    """
    result = call(invocation.settings(), lambda control: control.post("/roles/apply"))
    invocation.out.document(result)
    changed = ", ".join(result["changed"]) or "none had changed"
    invocation.out.line(f"The roles of the configuration are applied: {changed}.")


def _show(invocation: Invocation, view: Json) -> None:
    invocation.out.document(view)
    facts = [(key.replace("_", " "), value) for key, value in view.items() if key != "name"]
    invocation.out.facts(str(view.get("name", "")), facts)
