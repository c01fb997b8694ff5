"""``patgate store``: moves the embedded store into PostgreSQL, for several nodes."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from proxy.cli.options import REFUSED, Invocation, command
from proxy.cli.output import Output, plain, sentence
from proxy.core.errors import CopyRefused, NoStore
from proxy.settings.model import Settings
from proxy.settings.sources.secret import load_or_create
from proxy.settings.store_urls import EMBEDDED, SCHEME, PostgresqlUrl, has_password, is_shared, with_password
from proxy.store.address import sqlite_path, store_url
from proxy.supervisor import datadir

if TYPE_CHECKING:
    from proxy.store.copying.copy import Copied

PASSWORD_VARIABLE: Final = "PGPASSWORD"  # noqa: S105 - the name of a variable
_MAX_PASSWORD_BYTES: Final = 4096
_PROGRESS_SECONDS: Final = 5.0
"""How often a line of progress is printed if standard error is no terminal; on a terminal 25 times as often."""


class PostgresqlUrlType(click.ParamType[str]):
    """``postgresql://user@host/database``, as the setting ``store`` has it."""

    name = "url"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check an address; raises a usage error, which does not repeat the value: it may have a password."""
        try:
            PostgresqlUrl.parse(str(value))
        except ValueError as error:
            self.fail(str(error).replace("must be sqlite or ", f"must begin with {SCHEME}: "), param, ctx)
        return str(value)


@click.group()
def store() -> None:
    """The place where users, tokens and the audit log are stored."""


@store.command()
@click.option(
    "--to",
    "target",
    type=PostgresqlUrlType(),
    metavar="URL",
    help="An empty database: postgresql://user@host/database. By default the configured store.",
)
@click.option(
    "--password-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"A file with the password for --to (or {PASSWORD_VARIABLE}).",
)
@click.option("--dry-run", is_flag=True, help="Read and check everything, and write nothing.")
@command
def copy(invocation: Invocation, target: str | None, password_file: Path | None, dry_run: bool) -> None:
    """Copy the embedded store in data_dir into an empty PostgreSQL database, and verify the copy.

    No gateway may use data_dir meanwhile. The embedded store stays as it is.
    """
    settings = invocation.settings()
    address = _address(settings, target, password_file)
    out = invocation.out
    try:
        done = asyncio.run(_copy(settings, address, dry_run=dry_run, progress=_Progress(out)))
    except CopyRefused as error:
        for line in error.problems:
            out.note(plain(line))
        out.document({"error": type(error).__name__, "detail": str(error), "problems": list(error.problems)})
        click.echo(sentence(str(error)), err=True)
        raise SystemExit(REFUSED) from None
    _show(out, done, dry_run)


def _address(settings: Settings, target: str | None, password_file: Path | None) -> str:
    """Where to copy to, with the password."""
    if target is None:
        if not is_shared(settings.store):
            raise click.UsageError("Name the database with --to, because the configured store is sqlite.")
        if password_file is not None:
            raise click.UsageError("--password-file needs --to; the configured store has store_password.")
        return settings.store_address()
    given = os.environ.get(PASSWORD_VARIABLE, "")
    if password_file is not None:
        given = _password(password_file)
        if has_password(target):
            raise click.UsageError("The address in --to contains a password already: leave out --password-file.")
    return target if has_password(target) or not given else with_password(target, given)


def _password(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_PASSWORD_BYTES + 1)
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError("The file of --password-file cannot be read, or is not UTF-8.") from error
    if not text or "\0" in text or len(content) > _MAX_PASSWORD_BYTES:
        raise click.UsageError("The file of --password-file holds no password.")
    return text


async def _copy(settings: Settings, address: str, *, dry_run: bool, progress: "_Progress") -> "Copied":
    # Imported here: the help of a command needs no database library.
    from proxy.app import offline_control
    from proxy.services import derived_secrets
    from proxy.store.copying.copy import copy_store
    from proxy.store.copying.target import PostgresqlTarget

    embedded = settings.model_copy(update={"store": EMBEDDED})
    path = sqlite_path(store_url(EMBEDDED, settings.data_dir))
    datadir.require_store(settings.data_dir, path)
    datadir.prepare(settings.data_dir)
    with await datadir.lock(settings.data_dir, "patgate store copy"):
        if not datadir.exists(path):
            raise NoStore(f"There is no embedded store in the data directory {settings.data_dir}.")
        async with offline_control(embedded):
            # As every command does: an older schema is migrated, a change in doubt settled, an older store refused.
            pass
        secret = embedded.secret_key_bytes() or load_or_create(settings.data_dir, path)
        return await copy_store(
            path,
            PostgresqlTarget(address),
            key_fingerprint=derived_secrets.fingerprint(secret),
            dry_run=dry_run,
            progress=progress,
        )


class _Progress:
    """Prints how far a long copy is: on a terminal in one line that changes."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._terminal = sys.stderr.isatty()
        self._seconds = _PROGRESS_SECONDS / 25 if self._terminal else _PROGRESS_SECONDS
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, rows: int) -> None:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return
        self._last = now
        text = f"{what}: {done:,} of {rows:,} rows" if rows else what
        if self._terminal:
            click.echo(f"\r\033[K{text}", err=True, nl=False)
        else:
            self._out.note(text)


def _show(out: Output, done: "Copied", dry_run: bool) -> None:
    if sys.stderr.isatty():
        click.echo("\r\033[K", err=True, nl=False)
    problem = done.audit.problem
    out.document(
        {
            "copied": not dry_run,
            "rows": dict(done.rows),
            "change": done.epoch,
            "audit": {"events": done.audit.events, "head": str(done.audit.head), "problem": problem},
        }
    )
    out.table({"table": "TABLE", "rows": "ROWS"}, [{"table": t, "rows": n} for t, n in done.rows.items()], "")
    if problem is not None:
        out.note(f"The audit log has a problem, in the embedded store as well: {problem}.")
    if dry_run:
        out.line("Nothing was written. PostgreSQL takes every row, and the target is empty.")
        return
    out.line(f"Every row was read back and is the same. The last change has the number {done.epoch}.")
    out.line(f"The audit log is whole: {done.audit.events} events." if problem is None else "")
    out.note(
        "Now set store and secret_key in the configuration of every node, start them, and keep the embedded store "
        "away from data_dir: it would not notice changes."
    )
