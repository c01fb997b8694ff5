"""Options of every command: ``--config`` and ``--json``, and how errors become messages and exit statuses."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec

import click

from proxy.cli.output import Output
from proxy.core.errors import ConfigurationError, PatgateError
from proxy.settings.load import load
from proxy.settings.model import Settings
from proxy.settings.values import parse_duration

P = ParamSpec("P")

REFUSED: Final = 1
CONFIG_VARIABLE: Final = "PATGATE_CONFIG"


@dataclass(frozen=True, kw_only=True, slots=True)
class Invocation:
    """One run of a command: its configuration file and its output."""

    config: Path | None
    out: Output

    def config_path(self) -> Path:
        """The configuration file; without one this is a usage error (exit 2)."""
        if self.config is None:
            raise click.UsageError(f"Name the configuration with --config FILE or in {CONFIG_VARIABLE}.")
        return self.config

    def settings(self) -> Settings:
        """The configuration, with overrides from the environment. Raises ``ConfigurationError``."""
        return load(self.config_path(), os.environ)


def command(callback: Callable[Concatenate[Invocation, P], None]) -> Callable[P, None]:
    """Add ``--config`` and ``--json`` to a command, and turn its errors into a sentence and exit status 1.

    The callback's first argument is the ``Invocation``.
    """

    @click.option(
        "--config",
        "config",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar=CONFIG_VARIABLE,
        help=f"Configuration file (or {CONFIG_VARIABLE}).",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
    @functools.wraps(callback)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        config: Any = kwargs.pop("config")
        out = Output(as_json=bool(kwargs.pop("as_json")))
        try:
            callback(Invocation(config=config, out=out), *args, **kwargs)
        except ConfigurationError as error:
            out.mistakes(config, error)
            raise SystemExit(REFUSED) from None
        except PatgateError as error:
            out.refusal(error)
            raise SystemExit(REFUSED) from None

    return wrapped


class DurationType(click.ParamType[float]):
    """A duration such as ``30d``, ``12h``, ``90m`` or ``45s``, in seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse a duration; raises a usage error for anything else."""
        try:
            return parse_duration(value)
        except ValueError:
            self.fail("write a number and a unit, such as 30d, 12h, 90m or 45s", param, ctx)


DURATION: Final = DurationType()
