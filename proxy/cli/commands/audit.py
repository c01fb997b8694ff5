"""``patgate audit``: lists, follows, exports and verifies the audit log."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from proxy.cli.client import Control, ControlRefused, Json, call
from proxy.cli.listing import SHOWN, Rest, rest_behind
from proxy.cli.options import REFUSED, Invocation, command
from proxy.cli.output import plain, sentence
from proxy.core.errors import AuthorityUnavailable, Invalid
from proxy.core.model import ACTOR_KINDS
from proxy.services.audit.vocabulary import LEVELS, NOW, OUTCOMES, read_moment
from proxy.services.paging import LIMIT_MOST
from proxy.services.views import rfc3339
from proxy.supervisor import datadir

Filters = dict[str, str | None]
"""The filters as query parameters of the control API."""
Show = Callable[[Json], None]
Callback = TypeVar("Callback", bound=Callable[..., object])

COLUMNS: Final = {
    "time": "TIME",
    "who": "ACTOR",
    "action": "ACTION",
    "what": "TARGET",
    "org": "ORG",
    "result": "OUTCOME",
    "address": "ADDRESS",
    "request_id": "REQUEST",
}
PAGE: Final = 500
"""Events on one page of an export."""
FOLLOW_SECONDS: Final = 0.5


class MomentType(click.ParamType[str]):
    """A duration before now such as ``24h``, or RFC 3339; converted to RFC 3339 so that all pages use one time."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Parse a time; raises a usage error for anything else."""
        try:
            return str(rfc3339(read_moment(str(value), time.time(), "time")))
        except (Invalid, ValueError, OverflowError):
            self.fail("write a duration such as 24h or 30d, or a time such as 2026-01-31T12:00:00Z", param, ctx)


MOMENT: Final = MomentType()
_OPTIONS: Final = (
    click.option(
        "--actor-kind",
        type=click.Choice(ACTOR_KINDS),
        help="Kind of actor: a person, a token, a key, or patgate itself.",
    ),
    click.option("--token", "actor_name", metavar="NAME", help="Events caused by the token or key of this name."),
    click.option("--actor", metavar="ID", help="Events caused by the token, key or person with this id or prefix."),
    click.option("--user", metavar="EMAIL", help="Events on the log of this person's account."),
    click.option("--org", metavar="ORG", help="Events on the log of this organisation."),
    click.option("--level", type=click.Choice(LEVELS), help="Events of an organisation, or of none."),
    click.option(
        "--action", metavar="A", help="One action, or all with this beginning: account.pat.mint, account.pat., request."
    ),
    click.option("--target", metavar="ID", help="Events about the token, user, ... with this id or prefix."),
    click.option("--target-kind", metavar="KIND", help="Events about tokens, users, routes, ..."),
    click.option("--outcome", type=click.Choice(OUTCOMES), help="Events with this outcome."),
    click.option("--denied", is_flag=True, help="Requests that were refused, or would have been (report-only routes)."),
    click.option("--reason", metavar="R", help="Events with this reason, such as scope_denies."),
    click.option("--address", metavar="IP", help="Requests from this address."),
    click.option("--decision", "request", metavar="ID", help="The events of the request or decision with this id."),
    click.option("--since", type=MOMENT, metavar="T", help="From this time on: 24h, or 2026-01-31T12:00:00Z."),
    click.option("--until", type=MOMENT, metavar="T", help="Up to this time, not included."),
)


def filtered(callback: Callback) -> Callback:
    """Add the filters to a command, which gets them as keyword arguments."""
    for option in reversed(_OPTIONS):
        callback = option(callback)
    return callback


@click.group(invoke_without_command=True)
@filtered
@click.option(
    "--limit", type=click.IntRange(1, 10_000), help="At most this many events; by default 100, or 10 before --follow."
)
@click.option("--cursor", metavar="C", help="Continue with older events where an earlier list ended.")
@click.option("--follow", is_flag=True, help="Then print new events until interrupted.")
@command
def audit(invocation: Invocation, /, limit: int | None, cursor: str | None, follow: bool, **filters: Any) -> None:
    """Print events of the audit log, the newest last."""
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        given = (context.get_parameter_source(name) for name in context.params)
        if any(source is ParameterSource.COMMANDLINE for source in given):
            raise click.UsageError(f"Write options after `{context.invoked_subcommand}`.")
        return
    if follow and cursor is not None:
        raise click.UsageError("--follow begins with the newest events: leave out --cursor.")
    query = _query(filters)
    settings = invocation.settings()
    if follow:
        show = _line if not invocation.out.as_json else _json
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(follow_log(Control(settings.data_dir / datadir.CONTROL_SOCKET), query, limit or 10, show))
        return
    events, older = call(settings, lambda control: _newest(control, query, limit or SHOWN, cursor))
    invocation.out.document(events)
    invocation.out.table(COLUMNS, [_row(event) for event in events], "There are no such events.")
    if older is not None and (older.count or not older.exact):
        how = f"continue with --cursor {older.cursor}, or use `patgate audit export`."
        invocation.out.note(f"{older.words('older')}: {how}")


@audit.command()
@filtered
@command
def export(invocation: Invocation, /, **filters: Any) -> None:
    """Print events as JSON lines, the oldest first, up to the newest at the start of the export."""
    query = _query(filters)

    async def run(control: Control) -> None:
        cursor: str | None = None
        while True:
            page = await control.get("/audit", {**query, "order": "oldest", "limit": str(PAGE), "cursor": cursor})
            if page["items"]:
                click.echo("\n".join(json.dumps(event) for event in page["items"]))
            cursor = page["next_cursor"]
            if cursor is None:
                return

    call(invocation.settings(), run)


@audit.command()
@click.option(
    "--head",
    metavar="N:HASH",
    help="The head that an earlier verification printed: that event must still exist, unchanged.",
)
@command
def verify(invocation: Invocation, head: str | None) -> None:
    """Check that no event was removed or altered; if one was, name the first and exit with 1."""

    async def run(control: Control) -> Json:
        events, after = 0, None
        while True:
            step = await control.post("/audit/verify", {"after": after, "head": head})
            events, after = events + step["events"], step["next"]
            if after is None:
                return {"events": events, "problem": step["problem"], "head": step["head"]}

    result = call(invocation.settings(), run)
    invocation.out.document(result)
    if result["problem"] is not None:
        invocation.out.note(sentence(result["problem"]))
        raise SystemExit(REFUSED)
    invocation.out.line(f"The audit log is intact: {result['events']} events. Keep its head elsewhere, for --head:")
    invocation.out.line(result["head"])


async def follow_log(control: Control, filters: Filters, limit: int, show: Show) -> None:
    """Show the newest ``limit`` events, then new ones for ever. Waits for a gateway that does not answer."""
    cursor: str | None = None
    shown: set[int] = set()
    waiting = False
    while True:
        try:
            if cursor is None:
                begin = (await control.get("/audit", {**filters, "after": NOW}))["next_cursor"]
                newest, _ = await _newest(control, filters, limit, count=False)
                shown = {event["number"] for event in newest}
                for event in newest:
                    show(event)
                cursor = begin
            while True:
                page = await control.get("/audit", {**filters, "after": NOW, "limit": str(PAGE), "cursor": cursor})
                for event in page["items"]:
                    if event["number"] not in shown:
                        show(event)
                cursor, waiting = page["next_cursor"], False
                if len(page["items"]) < PAGE:
                    await asyncio.sleep(FOLLOW_SECONDS)
        except (AuthorityUnavailable, ControlRefused) as error:
            if isinstance(error, ControlRefused) and error.status < 500:
                raise
            if not waiting:
                click.echo("The gateway does not answer; waiting for it.", err=True)
            waiting = True
            await asyncio.sleep(FOLLOW_SECONDS)


async def _newest(
    control: Control, filters: Filters, limit: int, cursor: str | None = None, *, count: bool = True
) -> tuple[list[Json], Rest | None]:
    """The newest ``limit`` events, or those before a cursor, the newest last; with ``count``, also what is older."""
    events: list[Json] = []
    while True:
        wanted = str(min(limit - len(events), LIMIT_MOST))
        page = await control.get("/audit", {**filters, "limit": wanted, "cursor": cursor})
        events.extend(page["items"])
        cursor = page["next_cursor"]
        if cursor is None or (len(events) >= limit and not count):
            return events[::-1], None
        if len(events) >= limit:
            return events[::-1], await rest_behind(control, "/audit", filters, cursor)


def _query(filters: Mapping[str, Any]) -> Filters:
    return {name: "true" if value is True else value or None for name, value in filters.items()}


def _row(event: Json) -> Json:
    """The columns of an event for people."""
    return {
        **event,
        "who": " ".join(filter(None, (event["actor_kind"], event["actor_name"] or event["actor_id"]))),
        "what": " ".join(filter(None, (event["target_kind"], event["target_name"], event["target_id"]))),
        "result": " ".join(filter(None, (event["outcome"], event["reason"]))),
    }


def _line(event: Json) -> None:
    row = _row(event)
    click.echo("  ".join(plain(row[key]) for key in COLUMNS if row[key]))


def _json(event: Json) -> None:
    click.echo(json.dumps(event))
