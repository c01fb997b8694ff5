"""A patgate command in this process: the same words, answers and exit status, without the second that a start costs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from click.testing import CliRunner

from proxy.cli.main import patgate


def command(*arguments: str, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """How the command ended and what it said. Of PATGATE_ variables it has those of ``environ`` alone."""
    others: dict[str, str | None] = {name: None for name in os.environ if name.startswith("PATGATE_")}
    result = CliRunner(env=others | dict(environ)).invoke(patgate, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, stdout=result.stdout, stderr=result.stderr)
