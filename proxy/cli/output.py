"""Output of commands: tables and facts for people, one JSON document for programs.

1. Standard output has the result and nothing else; notes, warnings and refusals go to standard error.
2. A token is printed on a separate line and never wrapped, so that it can be copied or cut out whole.
3. Values come from other people: none is interpreted as markup, and none can control the terminal.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from proxy.core.errors import ConfigurationError, PatgateError

if TYPE_CHECKING:
    from rich.console import Console

_ENDLESS: Final = 10_000
"""Width in columns of an output that is not a terminal."""


def plain(value: object) -> str:
    """A value as one line of text: "" for ``None``, lists joined by spaces, control characters escaped."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(plain(item) for item in value)
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def sentence(text: str) -> str:
    """A message as one sentence: capital letter, full stop, no line breaks."""
    text = plain(" ".join(text.split()))
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")


def _escaped(text: str) -> str:
    """JSON with control characters escaped, because values of clients could control the terminal."""
    return "\n".join(
        line if line.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)
        for line in text.split("\n")
    )


class Output:
    """Prints the result of one command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def document(self, value: object) -> None:
        """Print the result for programs; does nothing without ``--json``."""
        if self.as_json:
            click.echo(_escaped(json.dumps(value, indent=2, ensure_ascii=False)))

    def line(self, text: str = "") -> None:
        """Print one line for people."""
        if not self.as_json:
            click.echo(text)

    def note(self, text: str) -> None:
        """Print a note to standard error, also with ``--json``."""
        click.echo(text, err=True)

    def table(self, columns: Mapping[str, str], rows: Sequence[Mapping[str, object]], empty: str) -> None:
        """Print rows for people; ``columns`` are titles by key, ``empty`` the sentence for no rows."""
        if self.as_json:
            return
        if not rows:
            self.note(empty)
            return
        if not sys.stdout.isatty():
            self.columns(columns, rows)
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for key, title in columns.items():
            table.add_column(title, no_wrap=key in ("prefix", "id"), overflow="fold")
        for row in rows:
            cells = {key: plain(row.get(key)) for key in columns}
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in cells.values()))
        self._console().print(table)

    def columns(
        self, columns: Mapping[str, str], rows: Sequence[Mapping[str, object]], widths: Sequence[int] | None = None
    ) -> list[int]:
        """Print rows as plain text, one line each, and return the widths of the columns.

        With ``widths`` the rows continue an earlier output without a header. Used when the output is no terminal and
        for long lists, because it is a thousand times faster than a drawn table.
        """
        lines = [[plain(row.get(key)) for key in columns] for row in rows]
        if widths is None:
            lines.insert(0, list(columns.values()))
            widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
        text = [" " + "   ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        if len(lines) > len(rows):
            text.insert(1, " " + "─" * (sum(widths) + 3 * (len(widths) - 1)))
        click.echo("\n".join(text))
        return list(widths)

    def facts(self, title: str, facts: Iterable[tuple[str, object]]) -> None:
        """Print a title and named values, for people."""
        if self.as_json:
            return
        from rich.table import Table
        from rich.text import Text

        console = self._console()
        console.print(Text(plain(title), style="bold"))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in facts:
            shown = plain(value)
            grid.add_row(Text(f"  {name}"), Text(shown or "–", style=_STYLES.get(shown, "")))
        console.print(grid)

    def secret(self, token: str) -> None:
        """Print a new token, for people, on a separate line."""
        if self.as_json:
            return
        self.note("This is the only time the token is shown; store it as a secret.")
        click.echo(token)

    def refusal(self, error: PatgateError) -> None:
        """Print why the command failed: a sentence on standard error, and with ``--json`` also the problem."""
        click.echo(sentence(str(error) or type(error).__name__), err=True)
        problem = getattr(error, "problem", None)
        self.document(problem if isinstance(problem, dict) else {"error": type(error).__name__, "detail": str(error)})

    def mistakes(self, config: Path | None, error: ConfigurationError) -> None:
        """Print the problems of a configuration, each on a line of standard error in the form that editors parse."""
        for problem in error.problems:
            click.echo(plain(problem.located(config)), err=True)
        problems = [{"path": p.path, "line": p.line, "message": p.message} for p in error.problems]
        self.document({"ok": False, "config": str(config), "problems": problems})

    def _console(self) -> "Console":
        from rich.console import Console

        return Console(file=sys.stdout, width=None if sys.stdout.isatty() else _ENDLESS, highlight=False, markup=False)


class ListPrinter:
    """Prints a list as its pages arrive: rows for people, the items of one array for programs."""

    def __init__(self, out: Output, columns: Mapping[str, str], empty: str) -> None:
        self._out = out
        self._columns = columns
        self._empty = empty
        self._count = 0
        self._widths: list[int] | None = None

    def add(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Print the next items."""
        if not rows:
            return
        if self._out.as_json:
            texts = [json.dumps(row, indent=2, ensure_ascii=False) for row in rows]
            indented = (f"  {line}" for line in ",\n".join(texts).split("\n"))
            click.echo(("," if self._count else "[") + "\n" + _escaped("\n".join(indented)), nl=False)
        elif self._count or not sys.stdout.isatty():
            self._widths = self._out.columns(self._columns, rows, self._widths)
        else:
            self._out.table(self._columns, rows, self._empty)
            self._widths = [0] * len(self._columns)
        self._count += len(rows)

    def end(self) -> None:
        """End the list."""
        if self._out.as_json:
            click.echo("\n]" if self._count else "[]")
        elif not self._count:
            self._out.note(self._empty)


_STYLES: Final = {
    "active": "green",
    "suspended": "yellow",
    "expired": "yellow",
    "revoked": "red",
    "removed": "red",
}
