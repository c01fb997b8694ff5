"""Printing lists: limits the number of items, and says how many more there are and how to continue.

1. The default for people is 100 items, with a last line on standard error that says how many more there are.
2. ``--json`` prints one array, with the whole list unless ``--limit`` is given. It is written page by page, so neither
   side holds the whole list in memory.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, Final, ParamSpec

import click

from proxy.cli.client import Control, Json, call
from proxy.cli.options import Invocation
from proxy.cli.output import ListPrinter
from proxy.services.paging import LIMIT_MOST

P = ParamSpec("P")

SHOWN: Final = 100
"""Default number of items for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The requested part of a list. ``limit`` None: the default for people or for programs."""

    limit: int | None
    cursor: str | None
    everything: bool

    def most(self, *, as_json: bool) -> int | None:
        """The number of items; None for all."""
        if self.everything or (as_json and self.limit is None):
            return None
        return self.limit or SHOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class Rest:
    """What follows the printed part: its cursor and its number of items; ``exact`` false: at least that many."""

    cursor: str
    count: int
    exact: bool

    def words(self, more: str) -> str:
        """The number, as the beginning of a sentence."""
        if self.exact:
            return f"{self.count} {more}"
        return f"At least {self.count} {more}" if self.count else f"There may be {more}"


def listed(
    *, cursor: bool = True
) -> Callable[[Callable[Concatenate[Invocation, Part, P], None]], Callable[Concatenate[Invocation, P], None]]:
    """Add ``--limit``, ``--cursor`` and ``--all`` to a command; the callback's second argument is the ``Part``.

    ``cursor`` false: for a list that the control API returns on one page.
    """

    def decorate(
        callback: Callable[Concatenate[Invocation, Part, P], None],
    ) -> Callable[Concatenate[Invocation, P], None]:
        @functools.wraps(callback)
        def wrapped(invocation: Invocation, /, *args: P.args, **kwargs: P.kwargs) -> None:
            limit: Any = kwargs.pop("limit")
            everything = bool(kwargs.pop("everything"))
            after: Any = kwargs.pop("cursor", None)
            if everything and limit is not None:
                raise click.UsageError("--all has no limit: leave out --limit.")
            callback(invocation, Part(limit=limit, cursor=after, everything=everything), *args, **kwargs)

        options = [
            click.option(
                "--limit",
                type=click.IntRange(min=1),
                help=f"Print at most this many; by default {SHOWN}, or all with --json.",
            ),
            click.option("--all", "everything", is_flag=True, help="Print everything."),
        ]
        if cursor:
            options.insert(1, click.option("--cursor", metavar="C", help="Continue where an earlier list ended."))
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


def unchanged(row: Json) -> Mapping[str, object]:
    """The item as the control API returns it."""
    return row


def show_list(
    invocation: Invocation,
    path: str,
    query: Mapping[str, str | None],
    part: Part,
    columns: Mapping[str, str],
    empty: str,
    shown: Callable[[Json], Mapping[str, object]] = unchanged,
) -> None:
    """Print this part of the list at ``path``; ``empty`` is the sentence for no items."""
    out = invocation.out
    printer = ListPrinter(out, columns, empty)

    def add(rows: list[Json]) -> None:
        printer.add(rows if out.as_json else [shown(row) for row in rows])

    rest = call(invocation.settings(), lambda control: walk(control, path, query, part, out.as_json, add))
    printer.end()
    say_more(invocation, rest)


async def walk(
    control: Control,
    path: str,
    query: Mapping[str, str | None],
    part: Part,
    as_json: bool,
    add: Callable[[list[Json]], object],
) -> Rest | None:
    """Pass the items of this part to ``add``, page by page; returns what follows, or None at the end of the list."""
    left = part.most(as_json=as_json)
    cursor: str | None = part.cursor
    while True:
        size = LIMIT_MOST if left is None else min(left, LIMIT_MOST)
        page = await control.get(path, {**query, "limit": str(size), "cursor": cursor})
        add(page["items"])
        cursor = page["next_cursor"]
        left = None if left is None else left - len(page["items"])
        if cursor is None:
            return None
        if left == 0:
            return await rest_behind(control, path, query, cursor)


async def rest_behind(control: Control, path: str, query: Mapping[str, str | None], cursor: str) -> Rest:
    """Count the items after a cursor.

    Requested once, at the end of the part: a page may have few items or none, and counting after each of many such
    pages would take much longer than the list.
    """
    page = await control.get(path, {**query, "limit": "1", "cursor": cursor, "count": "true"})
    return Rest(cursor=cursor, count=len(page["items"]) + page["remaining"], exact=page["remaining_exact"])


def show_whole(
    invocation: Invocation,
    rows: list[Json],
    part: Part,
    columns: Mapping[str, str],
    empty: str,
    shown: Callable[[Json], Mapping[str, object]] = unchanged,
) -> None:
    """Print this part of a list that is already loaded."""
    out = invocation.out
    most = part.most(as_json=out.as_json)
    printed = rows if most is None else rows[:most]
    printer = ListPrinter(out, columns, empty)
    printer.add(printed if out.as_json else [shown(row) for row in printed])
    printer.end()
    if len(printed) < len(rows):
        out.note(f"{len(rows) - len(printed)} more: --all lists everything.")


def say_more(invocation: Invocation, rest: Rest | None) -> None:
    """Print how many more items there are and how to list them, if any."""
    if rest is not None and (rest.count or not rest.exact):
        how = f"continue with --cursor {rest.cursor}, or list everything with --all."
        invocation.out.note(f"{rest.words('more')}: {how}")
