"""``patgate key``: API keys and organisation tokens, which belong to organisations instead of people."""

from collections.abc import Iterable
from typing import Final

import click

from proxy.cli.client import call, segment
from proxy.cli.commands.token_lifecycle import add_delete, add_verbs, path_of, show_made, show_view
from proxy.cli.listing import Part, listed, show_list
from proxy.cli.options import DURATION, Invocation, command

COLUMNS: Final = {
    "prefix": "PREFIX",
    "name": "NAME",
    "org": "ORG",
    "role": "ROLE",
    "status": "STATUS",
    "scopes": "SCOPES",
    "ip_ranges": "USABLE FROM",
    "expires_at": "EXPIRES",
    "last_used_at": "LAST USED",
}


@click.group()
def key() -> None:
    """Keys of organisations: they belong to no person, outlive the person who created them and cannot create tokens.

    An API key has one organisation and a role there. An organisation token is attached to several organisations, with
    permissions for each. ID is the 12 characters of the public prefix, or the whole prefix.
    """


@key.command()
@click.option("--name", required=True, help="What it is for.")
@click.option("--org", help="For an API key: its organisation.")
@click.option("--role", help="For an API key: its role, which cannot be changed later.")
@click.option(
    "--grant",
    "grants",
    multiple=True,
    metavar="ORG=PERMISSION,...",
    help="For an organisation token: its permissions in an organisation; repeatable.",
)
@click.option("--expires", type=DURATION, help="Lifetime, such as 365d.")
@click.option(
    "--scope", "scopes", multiple=True, metavar="SCOPE", help="Limit it to this, such as things:read; repeatable."
)
@click.option(
    "--ip",
    "ip_ranges",
    multiple=True,
    metavar="NETWORK",
    help="Let it be used only from this network, such as 10.0.0.0/8; repeatable.",
)
@click.option("--description", default="", help="A longer description.")
@command
def create(
    invocation: Invocation,
    name: str,
    org: str | None,
    role: str | None,
    grants: tuple[str, ...],
    expires: float | None,
    scopes: tuple[str, ...],
    ip_ranges: tuple[str, ...],
    description: str,
) -> None:
    """Create a key. Its value is shown only once."""
    body: dict[str, object] = {
        "name": name,
        "expires": expires,
        "scopes": list(scopes) or None,
        "ip_ranges": list(ip_ranges) or None,
        "description": description,
    }
    if grants and org is None and role is None:
        path = "/keys"
        body["grants"] = _grants(grants)
    elif org is not None and role is not None and not grants:
        path = f"/orgs/{segment(org)}/keys"
        body["role"] = role
    else:
        raise click.UsageError("A key has one organisation (--org and --role), or permissions in several (--grant).")
    show_made(invocation, call(invocation.settings(), lambda control: control.post(path, body)))


@key.command("list")
@click.option("--org", help="Only those of this organisation.")
@click.option("--status", type=click.Choice(["active", "expired", "revoked"]), help="Only those with this status.")
@command
@listed()
def list_keys(invocation: Invocation, part: Part, org: str | None, status: str | None) -> None:
    """List keys by their public prefix."""
    path = "/keys" if org is None else f"/orgs/{segment(org)}/keys"
    show_list(invocation, path, {"status": status}, part, COLUMNS, "There are no such keys.")


add_verbs(key, "keys", "key")
add_delete(key, "keys", "key")


@key.command()
@click.argument("reference", metavar="ID")
@click.argument("grant", metavar="ORG=PERMISSION,...")
@command
def attach(invocation: Invocation, reference: str, grant: str) -> None:
    """Attach an organisation token to another organisation, or replace its permissions there."""
    ((org, permissions),) = _grants([grant]).items()
    path = f"{path_of('keys', reference)}/orgs/{segment(org)}"
    body = {"permissions": permissions}
    show_view(invocation, call(invocation.settings(), lambda control: control.put(path, body)))


@key.command()
@click.argument("reference", metavar="ID")
@click.argument("org")
@command
def detach(invocation: Invocation, reference: str, org: str) -> None:
    """Detach an organisation token from an organisation, which frees its seat there."""
    path = f"{path_of('keys', reference)}/orgs/{segment(org)}"
    show_view(invocation, call(invocation.settings(), lambda control: control.delete(path)))


def _grants(texts: Iterable[str]) -> dict[str, list[str]]:
    """Permissions by organisation, from texts ``ORG=PERMISSION,PERMISSION``; a usage error for anything else."""
    grants: dict[str, list[str]] = {}
    for text in texts:
        org, _, permissions = text.partition("=")
        if not org or not permissions:
            raise click.UsageError("Write an organisation and its permissions: acme=things:read,things:list")
        grants.setdefault(org, []).extend(permissions.split(","))
    return grants
