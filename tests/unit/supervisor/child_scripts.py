"""Scripts of small real children, a keeper that runs one, and what they leave behind for a test to check."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from proxy.observe.logs import get_logger
from proxy.supervisor.child import ChildSpec, lifeline
from proxy.supervisor.keeper import Keeper
from tests.support.process import HANGS_SECONDS

# Writes its process id to the file that its first argument names, and lives until its lifeline closes or SIGTERM.
WELL_BEHAVED = """
import os, signal, sys
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
with open(sys.argv[1], "a") as diary:
    diary.write(f"{os.getpid()}\\n")
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
os.write(int(options["--ready-fd"]), b"ready\\n")
os.close(int(options["--ready-fd"]))
os.read(int(options["--lifeline-fd"]), 1)
"""
DEAF = WELL_BEHAVED.replace("lambda *_: os._exit(0)", "signal.SIG_IGN")
REFUSING = """
import os, sys
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
os.write(int(options["--ready-fd"]), b"error: The store was made with another secret key.\\n")
sys.exit(1)
"""
SILENT = "import sys; sys.exit(3)"


def spec(script: str, diary: Path, lifeline_fd: int) -> ChildSpec:
    """A child that runs ``script``, which may write to ``diary``."""
    run = (sys.executable, "-S", "-c", script, str(diary))
    return ChildSpec(name="child", command=run, fds=(), lifeline_fd=lifeline_fd)


@asynccontextmanager
async def keeping(script: str, diary: Path) -> AsyncIterator[Keeper]:
    """A keeper of a child that runs ``script``; both end with the block."""
    lifeline_in, lifeline_out = lifeline()
    keeper = Keeper(spec(script, diary, lifeline_in), get_logger("test"))
    try:
        yield keeper
    finally:
        await keeper.end()
        os.close(lifeline_in)
        os.close(lifeline_out)


async def until(condition: Callable[[], bool], seconds: float = HANGS_SECONDS) -> None:
    """Wait for a condition, or fail."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition is another process
            await asyncio.sleep(0.005)


def starts(diary: Path) -> list[int]:
    """The ids of the processes that wrote to ``diary``, in order."""
    return [int(line) for line in diary.read_text().split()] if diary.exists() else []
