"""``patgate routes``: lists the configured routes, and what report-only routes would have refused."""

from dataclasses import replace
from typing import Final

import click

from proxy.cli.client import Json, call
from proxy.cli.commands.audit import MOMENT
from proxy.cli.listing import Part, listed, show_whole
from proxy.cli.options import Invocation, command

_ROUTES: Final = {
    "number": "#",
    "path": "ROUTE",
    "methods": "METHODS",
    "host": "HOST",
    "access": "ACCESS",
    "upstream": "UPSTREAM",
    "enforced": "ENFORCED",
    "does": "OPERATIONS",
}
_REPORT: Final = {
    "count": "COUNT",
    "route": "ROUTE",
    "reason": "REASON",
    "lacking": "LACKING",
    "tokens": "TOKENS",
    "last_at": "LAST",
    "last_decision": "LAST DECISION",
    "enforced": "ENFORCED NOW",
}
_SHOWN: Final = 3
"""Number of permissions and tokens shown in one line; ``--json`` has more."""


@click.group()
def routes() -> None:
    """Routes: the configured ones, and what the report-only ones would have refused."""


@routes.command("list")
@command
@listed(cursor=False)
def list_routes(invocation: Invocation, part: Part) -> None:
    """List the routes in the order in which they are tried; the first match wins."""
    rows = call(invocation.settings(), lambda control: control.every("/routes"))
    show_whole(invocation, rows, part, _ROUTES, "There are no routes: every request is refused.", _route)


@routes.command()
@click.option("--since", type=MOMENT, metavar="T", help="Only requests since this time: 7d, or 2026-01-31T12:00:00Z.")
@click.option("--route", metavar="ROUTE", help="Only this route, as `patgate routes list` names it.")
@click.option("--clear", is_flag=True, help="Print the report, then reset it.")
@command
@listed(cursor=False)
def report(invocation: Invocation, part: Part, since: str | None, route: str | None, clear: bool) -> None:
    """List what routes with `enforce: false` would have refused, by route and reason.

    Counts begin with the store, or with the last --clear.
    """
    if clear and since is not None:
        raise click.UsageError("--clear applies to all times: leave out --since.")
    settings = invocation.settings()
    rows = [
        row
        for row in call(settings, lambda control: control.every("/routes/report", {"since": since}))
        if route in (None, row["route"])
    ]
    if clear:
        call(settings, lambda control: control.delete("/routes/report", {"route": route}))
    # Everything that is cleared is printed, however long.
    part = replace(part, everything=True) if clear else part
    show_whole(invocation, rows, part, _REPORT, "Nothing would have been refused.", _shown)
    if clear and rows:
        invocation.out.note("These entries are cleared.")


def _route(row: Json) -> Json:
    tokens = row["access"] == "token"
    does = [f"{method}:{name}" for method, name in row["operations"].items()]
    query = "&".join(f"{name}={value}" for name, value in (row["query"] or {}).items())
    path = f"{row['path']}?{query}" if query else row["path"]
    return {**row, "path": path, "enforced": row["enforce"] if tokens else None, "does": does if tokens else None}


def _shown(row: Json) -> Json:
    lacking = [f"{each['permission']} ({each['count']})" for each in row["permissions"][:_SHOWN]]
    tokens = [f"{each['name'] or each['prefix'] or 'none'} ({each['count']})" for each in row["tokens"][:_SHOWN]]
    return {
        **row,
        "lacking": ", ".join([*lacking, *_more(len(row["permissions"]))]),
        "tokens": ", ".join([*tokens, *_more(row["tokens_total"])]),
        "enforced": "no such route" if row["enforce"] is None else row["enforce"],
    }


def _more(count: int) -> list[str]:
    return [f"{count - _SHOWN} more"] if count > _SHOWN else []
