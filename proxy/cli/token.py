"""`patgate token`: mint, look at, replace and end personal access tokens."""

from typing import Final

import click

from proxy.cli.client import Json, ask, segment
from proxy.cli.options import DURATION, Invocation, command
from proxy.cli.output import sentence
from proxy.settings.compile import token_format

COLUMNS: Final = {
    "prefix": "PREFIX",
    "name": "NAME",
    "user": "USER",
    "org": "ORG",
    "status": "STATUS",
    "scopes": "SCOPES",
    "expires_at": "EXPIRES",
    "last_used_at": "LAST USED",
}

FACTS: Final = {
    "id": "id",
    "prefix": "prefix",
    "status": "status",
    "user": "user",
    "org": "organisation",
    "role": "role",
    "scopes": "scopes",
    "description": "description",
    "created_at": "created",
    "rotated_at": "rotated",
    "expires_at": "expires",
    "revoked_at": "revoked",
    "last_used_at": "last used",
    "use_count": "uses",
}


@click.group()
def token() -> None:
    """Personal access tokens. ID is the 12 characters of the public prefix, or the whole prefix."""


@token.command()
@click.option("--user", "email", required=True, metavar="EMAIL", help="Whose token it is; it acts with their role.")
@click.option("--name", required=True, help="What it is for.")
@click.option("--org", help="Bind it to this organisation; it reaches that one only.")
@click.option("--expires", type=DURATION, help="How long it works, such as 30d.")
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="Narrow it, such as things:read; repeatable.")
@click.option("--description", default="", help="More words about what it is for.")
@command
def create(
    invocation: Invocation,
    email: str,
    name: str,
    org: str | None,
    expires: float | None,
    scopes: tuple[str, ...],
    description: str,
) -> None:
    """Mint a token. It is shown this once."""
    body = {
        "user": email,
        "name": name,
        "org": org,
        "expires": expires,
        "scopes": list(scopes),
        "description": description,
    }
    created = ask(invocation.settings(), lambda control: control.post("/tokens", body))
    _created(invocation, created)
    if not created.get("expires_at"):
        invocation.out.note("Give the next one an end: --expires 30d")


@token.command("list")
@click.option("--user", "email", metavar="EMAIL", help="Only this person's.")
@click.option("--status", type=click.Choice(["active", "expired", "revoked"]), help="Only those.")
@command
def list_tokens(invocation: Invocation, email: str | None, status: str | None) -> None:
    """List tokens by their public prefix."""
    query = {"user": email, "status": status}
    rows = ask(invocation.settings(), lambda control: control.every("/tokens", query))
    invocation.out.document(rows)
    invocation.out.table(COLUMNS, rows, "There are no such tokens.")


@token.command()
@click.argument("token_id", metavar="ID")
@command
def show(invocation: Invocation, token_id: str) -> None:
    """Show what is known of one token, which is never its secret."""
    _show(invocation, ask(invocation.settings(), lambda control: control.get(f"/tokens/{_id(token_id)}")))


@token.command()
@click.argument("token_id", metavar="ID")
@command
def rotate(invocation: Invocation, token_id: str) -> None:
    """Replace its secret; id, name and scopes stay, and the old value fails on its next use."""
    _created(invocation, ask(invocation.settings(), lambda control: control.post(f"/tokens/{_id(token_id)}/rotate")))


@token.command()
@click.argument("token_id", metavar="ID")
@command
def revoke(invocation: Invocation, token_id: str) -> None:
    """End it; when this has answered, no request with it is accepted."""
    view = ask(invocation.settings(), lambda control: control.post(f"/tokens/{_id(token_id)}/revoke"))
    invocation.out.document(view)
    invocation.out.line(f"{view.get('prefix', token_id)} is revoked.")


@token.command()
@click.argument("token_id", metavar="ID")
@command
def delete(invocation: Invocation, token_id: str) -> None:
    """End it and forget it; the audit log keeps what it did."""
    view = ask(invocation.settings(), lambda control: control.delete(f"/tokens/{_id(token_id)}"))
    invocation.out.document(view)
    invocation.out.line(f"{token_id} is deleted.")


@token.command()
@command
def pattern(invocation: Invocation) -> None:
    """Print the regular expression that finds tokens of this brand, for secret scanners."""
    expression = token_format(invocation.settings()).pattern
    invocation.out.document({"pattern": expression})
    invocation.out.line(expression)


def _id(text: str) -> str:
    """The id of a token named by its id or its public prefix, as one segment of a path."""
    return segment(text.rpartition("_")[2])


def _created(invocation: Invocation, created: Json) -> None:
    for warning in created.get("warnings", ()):
        invocation.out.note(sentence(str(warning)))
    invocation.out.document(created)
    _facts(invocation, created)
    invocation.out.secret(str(created["token"]))


def _show(invocation: Invocation, view: Json) -> None:
    invocation.out.document(view)
    _facts(invocation, view)


def _facts(invocation: Invocation, view: Json) -> None:
    facts = [(title, view.get(key)) for key, title in FACTS.items() if view.get(key) is not None]
    if view.get("scopes") is None:
        facts.append(("scopes", "all of the role's"))
    if view.get("expires_at") is None:
        facts.append(("expires", "never"))
    invocation.out.facts(str(view.get("name", "")), facts)
