"""Commands on an existing token or key that ``patgate token`` and ``patgate key`` share."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

import click

from proxy.cli.client import Json, call, segment
from proxy.cli.options import DURATION, Invocation, command
from proxy.cli.output import sentence

FACTS: Final[Mapping[str, str]] = {
    "id": "id",
    "prefix": "prefix",
    "status": "status",
    "user": "user",
    "org": "organisation",
    "reach": "reaches",
    "role": "role",
    "scopes": "scopes",
    "ip_ranges": "usable from",
    "description": "description",
    "created_at": "created",
    "rotated_at": "rotated",
    "expires_at": "expires",
    "revoked_at": "revoked",
    "last_used_at": "last used",
    "last_used_ip": "last used from",
    "use_count": "uses",
    "parent_id": "created by token",
}


def show_made(invocation: Invocation, made: Json) -> None:
    """Print a token or key, and its new value."""
    warn(invocation, made)
    invocation.out.document(made)
    show_facts(invocation, made)
    value = made.get("token")
    if value is not None:
        invocation.out.secret(str(value))


def show_view(invocation: Invocation, view: Json) -> None:
    """Print a token or key."""
    warn(invocation, view)
    invocation.out.document(view)
    show_facts(invocation, view)


def warn(invocation: Invocation, view: Json) -> None:
    """Print the warnings of a response to standard error."""
    for warning in view.get("warnings", ()):
        invocation.out.note(sentence(str(warning)))


def show_facts(invocation: Invocation, view: Json) -> None:
    """Print the fields of a token or key, for people."""
    facts = [(title, view.get(key)) for key, title in FACTS.items() if view.get(key) not in (None, [])]
    scopes = view.get("scopes")
    if scopes == []:
        facts.append(("scopes", "none: it may do nothing"))
    elif scopes is None and view.get("reach") != "orgs":
        facts.append(("scopes", "all of the role's"))
    for attached in view.get("orgs") or ():
        facts.append((str(attached.get("org")), attached.get("permissions")))
    if view.get("expires_at") is None:
        facts.append(("expires", "never"))
    invocation.out.facts(str(view.get("name", "")), facts)


def path_of(collection: str, reference: str) -> str:
    """The path of a token or key by its id or public prefix; of a whole value, only the prefix is sent."""
    return f"/{collection}/{segment('_'.join(reference.split('_')[:3]))}"


def counted(count: int, what: str) -> str:
    """A sentence with the number of tokens and what happened to them."""
    return f"1 token is {what}." if count == 1 else f"{count} tokens are {what}."


def add_verbs(group: click.Group, collection: str, noun: str) -> None:
    """Add the shared commands to ``group``, for the API's ``collection``; ``noun`` is the word in the help."""

    @group.command()
    @click.argument("reference", metavar="ID")
    @command
    def show(invocation: Invocation, reference: str) -> None:
        show_view(invocation, call(invocation.settings(), lambda control: control.get(path_of(collection, reference))))

    @group.command()
    @click.argument("reference", metavar="ID")
    @command
    def rotate(invocation: Invocation, reference: str) -> None:
        path = f"{path_of(collection, reference)}/rotate"
        show_made(invocation, call(invocation.settings(), lambda control: control.post(path)))

    @group.command()
    @click.argument("reference", metavar="ID")
    @click.option(
        "--descendants", is_flag=True, help="Also revoke the tokens that it created, directly or through others."
    )
    @command
    def revoke(invocation: Invocation, reference: str, descendants: bool) -> None:
        path, body = f"{path_of(collection, reference)}/revoke", {"descendants": descendants}
        view = call(invocation.settings(), lambda control: control.post(path, body))
        warn(invocation, view)
        invocation.out.document(view)
        invocation.out.line(f"{view.get('prefix', reference)} is revoked.")

    @group.command()
    @click.argument("reference", metavar="ID")
    @click.option("--expires", type=DURATION, help="New lifetime, such as 30d.")
    @command
    def regenerate(invocation: Invocation, reference: str, expires: float | None) -> None:
        path, body = f"{path_of(collection, reference)}/regenerate", {"expires": expires}
        show_made(invocation, call(invocation.settings(), lambda control: control.post(path, body)))

    show.help = f"Show one {noun}, without its secret."
    rotate.help = "Replace its secret; id, name and scopes stay, and the old value fails on its next use."
    revoke.help = "Revoke it; once this command has ended, no request with it is accepted."
    regenerate.help = (
        f"Give a revoked or expired {noun} a new secret and lifetime.\n\nIts id, name, description and scopes stay."
    )
    _add_scopes(group, collection, noun)
    _add_ips(group, collection, noun)


def add_delete(group: click.Group, collection: str, noun: str) -> None:
    """Add the ``delete`` command to ``group``."""

    @group.command()
    @click.argument("reference", metavar="ID")
    @command
    def delete(invocation: Invocation, reference: str) -> None:
        removed(invocation, collection, reference)

    delete.help = f"Revoke and delete a {noun}; the audit log keeps its events."


def removed(invocation: Invocation, collection: str, reference: str) -> None:
    """Delete a token or key, and print that."""
    view = call(invocation.settings(), lambda control: control.delete(path_of(collection, reference)))
    warn(invocation, view)
    invocation.out.document(view)
    invocation.out.line(f"{view.get('prefix', reference)} is deleted.")


def _add_scopes(group: click.Group, collection: str, noun: str) -> None:
    @group.group(help=f"Limit what a {noun} may do of what its role allows; applies from its next use.")
    def scopes() -> None: ...

    def verb(name: str, method: str, help_text: str, *, wanted: bool = True) -> None:
        def run(invocation: Invocation, reference: str, texts: tuple[str, ...] = ()) -> None:
            path = f"{path_of(collection, reference)}/scopes"
            if method == "DELETE":
                query = urlencode([("scope", text) for text in texts])
                view = call(invocation.settings(), lambda control: control.delete(f"{path}?{query}" if query else path))
            elif method == "PUT":
                view = call(invocation.settings(), lambda control: control.put(path, {"scopes": list(texts)}))
            else:
                view = call(invocation.settings(), lambda control: control.post(path, {"scopes": list(texts)}))
            show_view(invocation, view)

        run.__name__, run.__doc__ = name, help_text
        wrapped = command(run)
        if wanted:
            wrapped = click.argument("texts", nargs=-1, required=True, metavar="SCOPE...")(wrapped)
        scopes.command(name)(click.argument("reference", metavar="ID")(wrapped))

    verb("add", "POST", "Add scopes, such as things:update.")
    verb("remove", "DELETE", "Remove scopes.")
    verb("set", "PUT", "Replace all scopes.")
    verb("clear", "DELETE", "Remove all scopes: it may do nothing until scopes are added.", wanted=False)


def _add_ips(group: click.Group, collection: str, noun: str) -> None:
    @group.group(help=f"Limit the addresses that a {noun} may be used from; applies from its next use.")
    def ips() -> None: ...

    @ips.command("set")
    @click.argument("reference", metavar="ID")
    @click.argument("ranges", nargs=-1, required=True, metavar="NETWORK...")
    @command
    def set_ranges(invocation: Invocation, reference: str, ranges: tuple[str, ...]) -> None:
        """Replace all its networks, such as 10.0.0.0/8 or 192.0.2.7."""
        path, body = f"{path_of(collection, reference)}/ip-ranges", {"ip_ranges": list(ranges)}
        show_view(invocation, call(invocation.settings(), lambda control: control.put(path, body)))

    @ips.command()
    @click.argument("reference", metavar="ID")
    @command
    def clear(invocation: Invocation, reference: str) -> None:
        """Let it be used from any address."""
        path = f"{path_of(collection, reference)}/ip-ranges"
        show_view(invocation, call(invocation.settings(), lambda control: control.delete(path)))
