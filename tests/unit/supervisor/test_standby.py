"""Spares, with real processes: they load before they are needed, open nothing, and end with the supervisor."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from proxy.core.ipc.child_protocol import SPARE_SUFFIX
from proxy.observe.logs import get_logger
from proxy.settings.model import Settings
from proxy.supervisor import standby
from proxy.supervisor.child import Child, ChildSpec, command_line, in_memory, lifeline
from proxy.supervisor.keeper import Keeper
from proxy.supervisor.standby import Spares
from tests.support.process import HANGS_SECONDS
from tests.unit.supervisor.child_scripts import WELL_BEHAVED, spec, starts, until

# Stands by like a spare, then becomes a well-behaved child with the arguments that it reads.
STANDS_BY = f"""
import json, os, sys
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
os.write(int(options["--ready-fd"]), b"spare\\n")
command = os.read(int(options["--orders-fd"]), 4096)
if not command: sys.exit(0)
sys.argv = ["-c", sys.argv[1], *json.loads(command)[2:]]
{WELL_BEHAVED}
"""


@pytest.fixture(autouse=True)
def no_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delay before a retry is longer than a test waits: a spare that stands by is never one that was retried."""
    monkeypatch.setattr(standby, "AGAIN_SECONDS", 2 * HANGS_SECONDS)


@asynccontextmanager
async def kept(diary: Path, *, after: float = 0.0) -> AsyncIterator[tuple[Spares, int]]:
    """Spares that run ``keep``, and their lifeline."""
    lifeline_in, lifeline_out = lifeline()
    spares = Spares(spec(STANDS_BY, diary, lifeline_in), get_logger("test"))
    keeping = asyncio.create_task(spares.keep(after=after), name="keep spare")
    try:
        yield spares, lifeline_in
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await spares.end()
        os.close(lifeline_in)
        os.close(lifeline_out)


@asynccontextmanager
async def standing_by(diary: Path) -> AsyncIterator[tuple[Spares, Keeper]]:
    """A keeper with a running child and a spare that stands by."""
    async with kept(diary) as (spares, lifeline_in):
        keeper = Keeper(spec(WELL_BEHAVED, diary, lifeline_in), get_logger("test"), spares=spares)
        try:
            await keeper.start()
            await until(lambda: spares.pid is not None)
            yield spares, keeper
        finally:
            await keeper.end()


async def test_a_spare_replaces_a_dead_child_and_the_next_spare_starts(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    async with standing_by(diary) as (spares, keeper):
        keep = asyncio.create_task(keeper.keep(), name="keep")
        first, spare = keeper.pid, spares.pid
        assert first is not None and starts(diary) == [first], "a spare does nothing before its command"
        os.kill(first, signal.SIGKILL)
        await until(lambda: starts(diary) == [first, spare])
        assert keeper.pid == spare
        await until(lambda: spares.pid not in (None, spare))
        await keeper.stop(5.0)
        await keep


async def test_a_child_that_dies_while_no_spare_stands_by_is_replaced_by_a_new_process(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    async with standing_by(diary) as (spares, keeper):
        keep = asyncio.create_task(keeper.keep(), name="keep")
        spare, first = spares.pid, keeper.pid
        assert spare is not None and first is not None
        os.kill(spare, signal.SIGKILL)
        await until(lambda: spares.pid is None)
        os.kill(first, signal.SIGKILL)
        await until(lambda: len(starts(diary)) == 2)
        assert spare not in starts(diary)
        await keeper.stop(5.0)
        await keep


async def test_a_spare_that_is_outdated_while_it_starts_is_replaced_at_once(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    async with kept(old) as (spares, lifeline_in):
        await asyncio.sleep(0)  # the process is requested and not started yet
        await spares.replace(spec(STANDS_BY, new, lifeline_in))

        def stands_by() -> bool:
            with suppress(FileNotFoundError):  # the outdated spare, which is ending
                return spares.pid is not None and str(new) in Path(f"/proc/{spares.pid}/cmdline").read_text()
            return False

        await until(stands_by)


async def test_the_first_spare_starts_after_a_delay(tmp_path: Path) -> None:
    began = asyncio.get_running_loop().time()
    async with kept(tmp_path / "diary", after=1.0) as (spares, _):
        await until(lambda: spares._child is not None or spares.pid is not None)
        assert asyncio.get_running_loop().time() - began >= 1.0
        await until(lambda: spares.pid is not None)


async def test_the_first_spare_after_reloads_in_quick_succession_starts_after_the_same_delay(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    async with kept(old, after=1.5) as (spares, lifeline_in):
        await until(lambda: spares.pid is not None)
        replaced = asyncio.get_running_loop().time()
        for _ in range(3):
            await spares.replace(spec(STANDS_BY, new, lifeline_in))
        await until(lambda: spares._child is not None)
        assert asyncio.get_running_loop().time() - replaced >= 1.5
        await until(lambda: spares.pid is not None)


@pytest.mark.parametrize("role", ["authority", "gateway"])
@pytest.mark.parametrize("end", ["lifeline", "commands"])
async def test_a_real_spare_opens_nothing_and_ends_when_either_pipe_closes(tmp_path: Path, role: str, end: str) -> None:
    data = tmp_path / "data"
    boot_fd = in_memory(Settings(data_dir=data).to_boot_json().encode())
    lifeline_in, lifeline_out = lifeline()
    commands_in, commands_out = os.pipe()
    arguments = ("--boot-fd", str(boot_fd), "--orders-fd", str(commands_in))
    run = command_line(role + SPARE_SUFFIX, *arguments)
    child = await Child.spawn(ChildSpec(name="spare", command=run, fds=(boot_fd, commands_in), lifeline_fd=lifeline_in))
    for fd in (boot_fd, commands_in, lifeline_in):
        os.close(fd)
    async with asyncio.timeout(HANGS_SECONDS):
        assert await child.stands_by()
    assert not data.exists()
    opened = {os.readlink(f"/proc/{child.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{child.pid}/fd")}
    channel = {name for name in opened if name.startswith("socket:")} - inherited_sockets()
    assert len(channel) == 1, "a spare has one socket, its channel to the supervisor"
    opened -= channel
    assert {name.partition(":")[0] for name in opened} <= {"pipe", "/dev/null", *opened_here()}
    assert f"{role}{SPARE_SUFFIX}" in Path(f"/proc/{child.pid}/cmdline").read_text().split("\0")
    os.close(lifeline_out if end == "lifeline" else commands_out)
    async with asyncio.timeout(HANGS_SECONDS):
        assert await child.ended() == 0
    os.close(commands_out if end == "lifeline" else lifeline_out)
    child.close_ready_pipe()


def inherited_sockets() -> set[str]:
    return {name for fd in (1, 2) if (name := os.readlink(f"/proc/self/fd/{fd}")).startswith("socket:")}


def opened_here() -> set[str]:
    """What our own standard outputs lead to, which children share."""
    return {os.readlink(f"/proc/self/fd/{fd}").partition(":")[0] for fd in (1, 2)}
