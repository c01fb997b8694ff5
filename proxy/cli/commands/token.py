"""``patgate token``: creates, lists, rotates and revokes personal access tokens."""

from typing import Final

import click

from proxy.cli.client import call
from proxy.cli.commands.token_lifecycle import add_verbs, counted, removed, show_made
from proxy.cli.listing import Part, listed, show_list
from proxy.cli.options import DURATION, Invocation, command
from proxy.settings.compile import token_format

COLUMNS: Final = {
    "prefix": "PREFIX",
    "name": "NAME",
    "user": "USER",
    "org": "ORG",
    "status": "STATUS",
    "scopes": "SCOPES",
    "ip_ranges": "USABLE FROM",
    "expires_at": "EXPIRES",
    "last_used_at": "LAST USED",
}
SOON: Final = "14d"


@click.group()
def token() -> None:
    """Personal access tokens. ID is the 12 characters of the public prefix, or the whole prefix."""


@token.command()
@click.option(
    "--user",
    "email",
    required=True,
    metavar="EMAIL",
    help="Its owner, whose current role it has at each request.",
)
@click.option("--name", required=True, help="What it is for.")
@click.option("--org", help="Limit it to this organisation.")
@click.option("--account", is_flag=True, help="Let it reach every organisation that its owner is in.")
@click.option("--expires", type=DURATION, help="Lifetime, such as 30d.")
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
    email: str,
    name: str,
    org: str | None,
    account: bool,
    expires: float | None,
    scopes: tuple[str, ...],
    ip_ranges: tuple[str, ...],
    description: str,
) -> None:
    """Create a token. Its value is shown only once."""
    if account and org is not None:
        raise click.UsageError("A token reaches one organisation (--org) or all of its owner's (--account).")
    body = {
        "user": email,
        "name": name,
        "org": org,
        "reach": "account" if account else None,
        "expires": expires,
        "scopes": list(scopes) or None,
        "ip_ranges": list(ip_ranges) or None,
        "description": description,
    }
    created = call(invocation.settings(), lambda control: control.post("/tokens", body))
    show_made(invocation, created)
    if not created.get("expires_at"):
        invocation.out.note("Let the next one expire: --expires 30d")


@token.command("list")
@click.option("--user", "email", metavar="EMAIL", help="Only those of this person.")
@click.option("--org", help="Only those of this organisation.")
@click.option("--status", type=click.Choice(["active", "expired", "revoked"]), help="Only those with this status.")
@click.option(
    "--expiring",
    type=DURATION,
    is_flag=False,
    flag_value=SOON,
    help="Only those that expire within this time; 14d without a value.",
)
@click.option("--unused", type=DURATION, help="Only those that have not been used for this long, such as 90d.")
@click.option("--parent", metavar="ID", help="Only those that this token created.")
@command
@listed()
def list_tokens(
    invocation: Invocation,
    part: Part,
    email: str | None,
    org: str | None,
    status: str | None,
    expiring: float | None,
    unused: float | None,
    parent: str | None,
) -> None:
    """List tokens by their public prefix."""
    query = {
        "user": email,
        "org": org,
        "status": status,
        "expiring_within": None if expiring is None else f"{expiring:.0f}",
        "unused_for": None if unused is None else f"{unused:.0f}",
        "parent": parent,
    }
    show_list(invocation, "/tokens", query, part, COLUMNS, "There are no such tokens.")


@token.command()
@click.argument("reference", metavar="[ID]", required=False)
@click.option("--all", "everything", is_flag=True, help="All tokens of --user.")
@click.option("--user", "email", metavar="EMAIL", help="Whose tokens --all deletes.")
@command
def delete(invocation: Invocation, reference: str | None, everything: bool, email: str | None) -> None:
    """Revoke and delete a token, or with --all all tokens of a user; the audit log keeps their events."""
    if reference is not None and not everything and email is None:
        removed(invocation, "tokens", reference)
    elif reference is None and everything and email is not None:
        result = call(invocation.settings(), lambda control: control.delete("/tokens", {"user": email}))
        invocation.out.document(result)
        invocation.out.line(counted(result["deleted"], "deleted"))
    else:
        raise click.UsageError("Name one token, or all of a user's with --all --user EMAIL.")


add_verbs(token, "tokens", "token")


@token.command()
@command
def pattern(invocation: Invocation) -> None:
    """Print the regular expression that finds tokens of this brand, for secret scanners."""
    expression = token_format(invocation.settings()).pattern
    invocation.out.document({"pattern": expression})
    invocation.out.line(expression)
