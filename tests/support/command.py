"""Runs a patgate command in this process: same output and exit status, without the second that a new process takes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from click.testing import CliRunner

from proxy.cli.main import patgate


def command(*arguments: str, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The command's exit status and output. It sees only the PATGATE_ variables of ``environ``."""
    others: dict[str, str | None] = {name: None for name in os.environ if name.startswith("PATGATE_")}
    result = CliRunner(env=others | dict(environ)).invoke(patgate, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, stdout=result.stdout, stderr=result.stderr)
