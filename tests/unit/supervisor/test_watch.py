"""Children that hang, and replacements and reloads that keep out of each other's way."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from proxy.supervisor.processes import HUNG_LOOKS, Gate
from proxy.supervisor_channel import SupervisorChannel
from tests.unit.supervisor.test_processes import WELL_BEHAVED, keeping, starts, until

BEATING = """
import os, signal, sys, time
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
with open(sys.argv[1], "a") as diary:
    diary.write(f"{os.getpid()}\\n")
os.write(int(options["--ready-fd"]), b"ready\\n")
while True:
    os.write(int(options["--channel-fd"]), b'{"beat":true}')
    time.sleep(0.01)
"""


async def test_a_child_that_says_nothing_for_too_many_looks_is_killed_and_replaced(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    async with keeping(WELL_BEHAVED, diary) as keeper, asyncio.TaskGroup() as group:
        await keeper.start()
        group.create_task(keeper.keep(), name="keep")
        first = keeper.pid
        for _ in range(HUNG_LOOKS - 1):
            keeper.look()
        assert keeper.pid == first, "one look fewer is no reason"
        keeper.look()
        await until(lambda: keeper.pid not in (None, first) and keeper.serving is not None)
        assert len(starts(diary)) == 2
        await keeper.stop(5.0)


async def test_a_child_that_turns_is_left_alone_and_one_that_is_stopped_is_not(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    async with keeping(BEATING, diary) as keeper, asyncio.TaskGroup() as group:
        await keeper.start()
        group.create_task(keeper.keep(), name="keep")
        first, child = keeper.pid, keeper.serving
        assert first is not None and child is not None
        for _ in range(3 * HUNG_LOOKS):
            await heard(child.line)
            keeper.look()
        assert keeper.pid == first
        os.kill(first, signal.SIGSTOP)
        while keeper.pid == first:
            keeper.look()
            await asyncio.sleep(0.01)
        await until(lambda: len(starts(diary)) == 2)
        await keeper.stop(5.0)


async def heard(line: SupervisorChannel) -> None:
    beats = line.beats
    await until(lambda: line.beats > beats)


async def test_a_reload_waits_for_replacements_and_they_for_it() -> None:
    gate = Gate()
    order: list[str] = []
    go_on = asyncio.Event()

    async def replace(name: str) -> None:
        async with gate.replacing():
            order.append(name)
            await go_on.wait()

    async def reload() -> None:
        async with gate.reloading():
            order.append("reload")
            await asyncio.sleep(0)
            order.append("reloaded")

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(replace("one"), name="one")
        group.create_task(replace("two"), name="two")
        await asyncio.sleep(0.01)
        group.create_task(reload(), name="reload")
        await asyncio.sleep(0.01)
        assert order == ["one", "two"]
        go_on.set()
        await asyncio.sleep(0.01)
        group.create_task(replace("three"), name="three")
    assert order == ["one", "two", "reload", "reloaded", "three"]
