"""``patgate policy``: shows and changes the token policy, and lists or ends tokens that break it."""

from typing import Final

import click

from proxy.cli.client import Control, Json, call, segment
from proxy.cli.commands.token_lifecycle import counted
from proxy.cli.listing import Part, Rest, listed, say_more, walk
from proxy.cli.options import DURATION, Invocation, command
from proxy.cli.output import plain, sentence

COLUMNS: Final = {
    "prefix": "PREFIX",
    "name": "NAME",
    "user": "USER",
    "breaks": "BREAKS",
    "expires_at": "EXPIRES",
    "last_used_at": "LAST USED",
}
_UNLIMITED: Final = "none"


class _Limit(click.ParamType[object]):
    """A value of ``inner``, or ``none``."""

    def __init__(self, inner: click.ParamType[float] | click.ParamType[int]) -> None:
        self._inner = inner
        self.name = inner.name

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        return _UNLIMITED if value == _UNLIMITED else self._inner.convert(value, param, ctx)


@click.group()
def policy() -> None:
    """Token policy. The deployment's is in the configuration; an organisation's can only be stricter."""


@policy.command()
@click.option("--org", help="The policy for tokens of this organisation.")
@command
def show(invocation: Invocation, org: str | None) -> None:
    """Show the policy in force, and where each limit comes from."""
    path = "/policy" if org is None else f"/orgs/{segment(org)}/policy"
    _show(invocation, call(invocation.settings(), lambda control: control.get(path)))


@policy.command("set")
@click.argument("org")
@click.option(
    "--max-lifetime", type=_Limit(DURATION), help="Longest lifetime of a new token, such as 90d; `none` for no limit."
)
@click.option("--require-expiry/--no-require-expiry", default=None, help="Whether a new token must have an expiry.")
@click.option(
    "--inactive-after",
    type=_Limit(DURATION),
    help="End tokens that have not been used for this long; `none` for never.",
)
@click.option("--tokens-per-user", type=_Limit(click.INT), help="Most active tokens of a user; `none` for no limit.")
@click.option(
    "--org-tokens",
    type=_Limit(click.INT),
    help="Most organisation tokens attached to it; `none` for no limit.",
)
@click.option("--require-scopes/--no-require-scopes", default=None, help="Whether a new token must name its scopes.")
@click.option(
    "--forbid-scope",
    "forbidden",
    multiple=True,
    metavar="SCOPE",
    help="Refuse new tokens with a scope that covers this; repeatable; `none` for no limit.",
)
@click.option(
    "--admin-right",
    "rights",
    multiple=True,
    type=click.Choice(["revoke", "delete", _UNLIMITED]),
    help="What its administrators may do to the tokens of others, if the deployment lets them; repeatable.",
)
@click.option("--expire", is_flag=True, help="End its active tokens that break the policy.")
@command
def set_policy(
    invocation: Invocation,
    org: str,
    max_lifetime: object,
    require_expiry: bool | None,
    inactive_after: object,
    tokens_per_user: object,
    org_tokens: object,
    require_scopes: bool | None,
    forbidden: tuple[str, ...],
    rights: tuple[str, ...],
    expire: bool,
) -> None:
    """Change an organisation's own policy; limits that are not given stay unchanged.

    A repeatable option replaces the whole list.

    Existing tokens keep working; the command says how many of them break the new policy. --expire ends those.
    """
    changes = {
        "max_lifetime": max_lifetime,
        "require_expiry": require_expiry,
        "inactive_after": inactive_after,
        "tokens_per_user": tokens_per_user,
        "org_tokens_per_org": org_tokens,
        "require_scopes": require_scopes,
        "forbidden_scopes": _listed(forbidden),
        "admin_rights": _listed(rights),
    }
    path = f"/orgs/{segment(org)}/policy"

    given = {name: None if value == _UNLIMITED else value for name, value in changes.items() if value is not None}
    target = f"{path}?expire=true" if expire else path
    view = call(invocation.settings(), lambda control: control.patch(target, given))
    for warning in view["warnings"]:
        invocation.out.note(sentence(str(warning)))
    _show(invocation, view)
    if view["expired"] is not None:
        invocation.out.line(counted(view["expired"], "expired"))
    elif view["breaking"]:
        invocation.out.note(f"List them: patgate policy check --org {plain(org)}; end them: --expire")


@policy.command()
@click.option("--org", help="Only tokens of this organisation.")
@command
@listed()
def check(invocation: Invocation, part: Part, org: str | None) -> None:
    """List the active tokens that break the current policy, and the rules that each breaks."""
    out = invocation.out
    rows: list[Json] = []

    async def read(control: Control) -> tuple[Rest | None, list[Json]]:
        rest = await walk(control, "/policy/violations", {"org": org}, part, out.as_json, rows.extend)
        return rest, await control.every("/policy/crowded") if org is None else []

    rest, crowded = call(invocation.settings(), read)
    out.document({"violations": rows, "crowded": crowded, "next_cursor": None if rest is None else rest.cursor})
    out.table(COLUMNS, rows, "No active token breaks the policy.")
    for user in crowded:
        out.note(f"{plain(user['user'])} has {user['tokens']} active tokens: more than tokens_per_user.")
    say_more(invocation, rest)


@policy.command()
@click.option("--org", help="Only tokens of this organisation.")
@command
def expire(invocation: Invocation, org: str | None) -> None:
    """End the active tokens that break the current policy. Their owners can regenerate them within the policy."""
    path = "/policy/expire" if org is None else f"/policy/expire?org={segment(org)}"
    result = call(invocation.settings(), lambda control: control.post(path))
    invocation.out.document(result)
    invocation.out.line(counted(result["expired"], "expired"))


def _duration(seconds: float) -> str:
    """A duration in the form of the options, in the largest unit that gives a whole number."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _listed(values: tuple[str, ...]) -> list[str] | None:
    if not values:
        return None
    return [] if _UNLIMITED in values else list(values)


def _show(invocation: Invocation, view: Json) -> None:
    invocation.out.document(view)
    effective, deployment, own = view["effective"], view["deployment"], view.get("own") or {}
    facts = []
    for name, value in effective.items():
        shown = "no" if value is False else "none" if value in (None, []) else value
        source = ""
        if value not in (None, False, []):
            sources = [who for who, rules in (("deployment", deployment), ("organisation", own)) if rules.get(name)]
            source = f"  ({' and '.join(sources)})" if view.get("org") else ""
        if name in ("max_lifetime", "inactive_after") and isinstance(shown, int | float):
            shown = _duration(shown)
        facts.append((name.replace("_", " "), f"{' '.join(shown) if isinstance(shown, list) else shown}{source}"))
    invocation.out.facts(f"Policy of {view['org']}" if view.get("org") else "Policy of the deployment", facts)
