"""Keepers of small real children: readiness, replacement, back-off, hung children, the end, and reloads in between."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from proxy.observe.logs import get_logger
from proxy.supervisor.child import HUNG_LOOKS, lifeline
from proxy.supervisor.errors import ReloadRefused, StartupRefused
from proxy.supervisor.keeper import Gate, Keeper, delay_before
from proxy.supervisor_channel import SupervisorChannel
from tests.support.process import HANGS_SECONDS
from tests.unit.supervisor.child_scripts import DEAF, REFUSING, SILENT, WELL_BEHAVED, keeping, spec, starts, until

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


async def test_a_child_is_ready_when_it_says_so(tmp_path: Path) -> None:
    async with keeping(WELL_BEHAVED, tmp_path / "diary") as keeper:
        await keeper.start()
        assert starts(tmp_path / "diary") == [keeper.pid]


async def test_the_sentence_of_a_child_that_refuses_is_the_error(tmp_path: Path) -> None:
    async with keeping(REFUSING, tmp_path / "diary") as keeper:
        with pytest.raises(StartupRefused, match=r"^The store was made with another secret key\.$"):
            await keeper.start()
        assert keeper.pid is None


async def test_a_child_that_ends_without_a_report_is_described(tmp_path: Path) -> None:
    async with keeping(SILENT, tmp_path / "diary") as keeper:
        expected = r"^The child process ended before it was ready \(exit status 3\); the log may say why\.$"
        with pytest.raises(StartupRefused, match=expected):
            await keeper.start()


async def test_killing_a_keeper_while_its_child_starts_does_not_wait_for_readiness(tmp_path: Path) -> None:
    never_ready = "import time; time.sleep(3600)"
    async with keeping(never_ready, tmp_path / "diary") as keeper:
        start = asyncio.create_task(keeper.start(), name="start")
        await asyncio.sleep(0)
        assert keeper.pid is None, "the child has already started"
        keeper.kill()
        async with asyncio.timeout(HANGS_SECONDS):
            with pytest.raises(StartupRefused, match="killed by SIGKILL"):
                await start


@pytest.mark.alone
async def test_a_killed_child_is_replaced_within_a_second(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    async with keeping(WELL_BEHAVED, diary) as keeper, asyncio.TaskGroup() as group:
        await keeper.start()
        group.create_task(keeper.keep(), name="keep")
        first = keeper.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: len(starts(diary)) == 2, seconds=1.0)
        await until(lambda: keeper.pid == starts(diary)[1])
        await keeper.stop(5.0)


async def test_a_stopped_child_is_not_replaced(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    async with keeping(WELL_BEHAVED, diary) as keeper:
        await keeper.start()
        keep = asyncio.create_task(keeper.keep(), name="keep")
        await keeper.stop(5.0)
        await keep
        assert len(starts(diary)) == 1


async def test_a_child_that_ignores_sigterm_is_killed_after_the_deadline(tmp_path: Path) -> None:
    async with keeping(DEAF, tmp_path / "diary") as keeper:
        await keeper.start()
        assert keeper.pid is not None
        await keeper.stop(0.1)
        with pytest.raises(ProcessLookupError):
            os.kill(keeper.pid, 0)


async def test_a_failed_restart_is_retried_and_can_be_stopped(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    once = f"import os, sys\nif os.path.exists({str(diary)!r}): sys.exit(1)\n{WELL_BEHAVED}"
    async with keeping(once, diary) as keeper:
        await keeper.start()
        keep = asyncio.create_task(keeper.keep(), name="keep")
        assert keeper.pid is not None
        os.kill(keeper.pid, signal.SIGKILL)
        await asyncio.sleep(0)
        await until(lambda: keeper.pid is not None and keeper.pid != starts(diary)[0])
        await keeper.stop(5.0)
        await keep
        assert len(starts(diary)) == 1


async def test_children_end_when_the_lifeline_closes(tmp_path: Path) -> None:
    lifeline_in, lifeline_out = lifeline()
    keeper = Keeper(spec(WELL_BEHAVED, tmp_path / "diary", lifeline_in), get_logger("test"))
    await keeper.start()
    keep = asyncio.create_task(keeper.keep(), name="keep")
    pid = keeper.pid
    assert pid is not None
    os.close(lifeline_out)
    await until(lambda: len(starts(tmp_path / "diary")) > 1 or keeper.pid != pid)
    await keeper.end()
    await keep
    os.close(lifeline_in)


@pytest.mark.parametrize(("quick_deaths", "seconds"), [(0, 0.0), (1, 0.0), (2, 0.1), (3, 0.2), (5, 0.8), (50, 5.0)])
def test_the_first_restart_is_immediate_and_later_ones_wait_up_to_five_seconds(
    quick_deaths: int, seconds: float
) -> None:
    assert delay_before(quick_deaths) == pytest.approx(seconds)


async def test_a_child_whose_replacement_is_pointless_is_not_replaced(tmp_path: Path) -> None:
    lifeline_in, lifeline_out = lifeline()
    seen: list[int] = []

    def hopeless(status: int) -> bool:
        seen.append(status)
        return True

    diary = tmp_path / "diary"
    keeper = Keeper(spec(WELL_BEHAVED, diary, lifeline_in), get_logger("test"), hopeless=hopeless)
    await keeper.start()
    assert keeper.pid is not None
    os.kill(keeper.pid, signal.SIGKILL)
    async with asyncio.timeout(HANGS_SECONDS):
        await keeper.keep()
    assert (seen, len(starts(diary))) == ([-signal.SIGKILL], 1)
    os.close(lifeline_in)
    os.close(lifeline_out)


async def test_a_child_without_a_heartbeat_for_too_many_checks_is_killed_and_replaced(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    async with keeping(WELL_BEHAVED, diary) as keeper, asyncio.TaskGroup() as group:
        await keeper.start()
        group.create_task(keeper.keep(), name="keep")
        first = keeper.pid
        for _ in range(HUNG_LOOKS - 1):
            keeper.kill_if_hung()
        assert keeper.pid == first, "killed one check too early"
        keeper.kill_if_hung()
        await until(lambda: keeper.pid not in (None, first) and keeper.serving is not None)
        assert len(starts(diary)) == 2
        await keeper.stop(5.0)


async def test_a_child_with_heartbeats_is_kept_and_one_that_is_stopped_by_a_signal_is_replaced(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    async with keeping(BEATING, diary) as keeper, asyncio.TaskGroup() as group:
        await keeper.start()
        group.create_task(keeper.keep(), name="keep")
        first, child = keeper.pid, keeper.serving
        assert first is not None and child is not None
        for _ in range(3 * HUNG_LOOKS):
            await heartbeat(child.channel)
            keeper.kill_if_hung()
        assert keeper.pid == first
        os.kill(first, signal.SIGSTOP)
        while keeper.pid == first:
            keeper.kill_if_hung()
            await asyncio.sleep(0.01)
        await until(lambda: len(starts(diary)) == 2)
        await keeper.stop(5.0)


async def heartbeat(channel: SupervisorChannel) -> None:
    beats = channel.beats
    await until(lambda: channel.beats > beats)


async def test_a_reload_waits_for_replacements_and_blocks_them() -> None:
    gate = Gate()
    order: list[str] = []
    release = asyncio.Event()

    async def replace(name: str) -> None:
        async with gate.replacing():
            order.append(name)
            await release.wait()

    async def reload() -> None:
        async with gate.reloading():
            order.append("reload")
            await asyncio.sleep(0)
            order.append("reloaded")

    async with asyncio.timeout(HANGS_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(replace("one"), name="one")
        group.create_task(replace("two"), name="two")
        await asyncio.sleep(0.01)
        group.create_task(reload(), name="reload")
        await asyncio.sleep(0.01)
        assert order == ["one", "two"]
        release.set()
        await asyncio.sleep(0.01)
        group.create_task(replace("three"), name="three")
    assert order == ["one", "two", "reload", "reloaded", "three"]


async def test_a_reload_that_waits_for_a_replacement_is_refused_when_the_stop_begins() -> None:
    gate = Gate()

    async def reload() -> None:
        async with gate.reloading():
            raise AssertionError("a child is being replaced")

    async with gate.replacing():
        waiting = asyncio.create_task(reload(), name="reload")
        await asyncio.sleep(0)
        assert not waiting.done()
        await gate.close()
        with pytest.raises(ReloadRefused, match="about to end"):
            await waiting
    with pytest.raises(ReloadRefused, match="about to end"):
        await reload()
