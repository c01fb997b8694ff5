"""Running a foreground server on the core on which it is measured."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.errors import BenchError
from bench.load.wrk import ask
from bench.system.machine import until


@contextmanager
def run_daemon(
    command: Sequence[str],
    directory: Path,
    *,
    port: int,
    path: str,
    token: str,
    cores: frozenset[int],
    environment: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Run ``command`` until the context ends; gives its pid once it answers ``path`` with 200.

    It is pinned to ``cores`` before it starts, so that a runtime that counts cores counts these. Raises BenchError with
    the end of its log if it does not become ready.
    """
    log = directory / "daemon.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**os.environ, "HOME": str(directory), **(environment or {})},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def ready() -> bool:
        try:
            return ask(port, path, token)[0] == 200
        except OSError:
            return False

    try:
        try:
            until(lambda: process.poll() is not None or ready(), f"{Path(command[0]).name} answers", 30)
            if process.poll() is not None:
                raise BenchError(f"{Path(command[0]).name} ended with status {process.returncode}.")
        except BenchError as error:
            raise BenchError(f"{error} Its log ends: {log.read_text(errors='replace').strip()[-1500:]}") from None
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
