"""Children and their keepers, with small real processes: readiness, replacement, backing off, ends."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.observe.logs import get_logger
from proxy.supervisor.errors import ReloadRefused, StartupRefused
from proxy.supervisor.processes import Child, ChildSpec, Gate, Keeper, delay_before, in_memory, lifeline
from tests.support.process import children

# A child that says what its first argument is and then lives until its lifeline ends or it is told to go.
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


@asynccontextmanager
async def keeping(script: str, diary: Path) -> AsyncIterator[Keeper]:
    """A keeper of a child that runs ``script``, and the end of both."""
    lifeline_in, lifeline_out = lifeline()
    spec = ChildSpec(
        name="child", command=(sys.executable, "-S", "-c", script, str(diary)), fds=(), lifeline_fd=lifeline_in
    )
    keeper = Keeper(spec, get_logger("test"))
    try:
        yield keeper
    finally:
        await keeper.end()
        os.close(lifeline_in)
        os.close(lifeline_out)


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a condition, or fail."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition is another process
            await asyncio.sleep(0.005)


def starts(diary: Path) -> list[int]:
    """The processes that were started, in their order."""
    return [int(line) for line in diary.read_text().split()] if diary.exists() else []


async def test_a_child_is_ready_when_it_says_so(tmp_path: Path) -> None:
    async with keeping(WELL_BEHAVED, tmp_path / "diary") as keeper:
        await keeper.start()
        assert starts(tmp_path / "diary") == [keeper.pid]


async def test_a_child_that_refuses_is_quoted(tmp_path: Path) -> None:
    async with keeping(REFUSING, tmp_path / "diary") as keeper:
        with pytest.raises(StartupRefused, match=r"^The store was made with another secret key\.$"):
            await keeper.start()
        assert keeper.pid is None


async def test_a_child_that_ends_without_a_word_is_described(tmp_path: Path) -> None:
    async with keeping(SILENT, tmp_path / "diary") as keeper:
        expected = r"^The child process ended before it was ready \(exit status 3\); the log may say why\.$"
        with pytest.raises(StartupRefused, match=expected):
            await keeper.start()


async def test_a_keeper_that_is_killed_while_the_system_starts_its_child_does_not_wait_for_it(tmp_path: Path) -> None:
    never_ready = "import time; time.sleep(3600)"
    async with keeping(never_ready, tmp_path / "diary") as keeper:
        start = asyncio.create_task(keeper.start(), name="start")
        await asyncio.sleep(0)
        assert keeper.pid is None, "the child is there already"
        keeper.kill()
        async with asyncio.timeout(60):
            with pytest.raises(StartupRefused, match="killed by SIGKILL"):
                await start


async def test_a_start_that_is_given_up_leaves_no_process(tmp_path: Path) -> None:
    lifeline_in, lifeline_out = lifeline()
    spec = ChildSpec(
        name="child",
        command=(sys.executable, "-S", "-c", WELL_BEHAVED, str(tmp_path / "diary")),
        fds=(),
        lifeline_fd=lifeline_in,
    )
    before = set(children(os.getpid()))
    for turns in range(40):
        start = asyncio.create_task(Child.spawn(spec), name="start")
        for _ in range(turns):
            await asyncio.sleep(0)
        start.cancel()
        (outcome,) = await asyncio.gather(start, return_exceptions=True)
        if isinstance(outcome, Child):
            outcome.send(signal.SIGKILL)
            await outcome.ended()
            outcome.let_go()
        assert set(children(os.getpid())) <= before, f"after {turns} turns of the loop"
    os.close(lifeline_in)
    os.close(lifeline_out)


async def test_a_reload_that_waits_for_a_child_is_refused_when_the_stop_begins() -> None:
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


async def test_a_killed_child_is_back_within_a_second(tmp_path: Path) -> None:
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


async def test_a_child_that_does_not_listen_is_killed_after_the_deadline(tmp_path: Path) -> None:
    async with keeping(DEAF, tmp_path / "diary") as keeper:
        await keeper.start()
        assert keeper.pid is not None
        await keeper.stop(0.1)
        with pytest.raises(ProcessLookupError):
            os.kill(keeper.pid, 0)


async def test_a_child_that_cannot_start_again_is_tried_again_and_can_be_stopped(tmp_path: Path) -> None:
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


async def test_children_end_when_the_lifeline_does(tmp_path: Path) -> None:
    lifeline_in, lifeline_out = lifeline()
    command = (sys.executable, "-S", "-c", WELL_BEHAVED, str(tmp_path / "diary"))
    keeper = Keeper(ChildSpec(name="child", command=command, fds=(), lifeline_fd=lifeline_in), get_logger("test"))
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
def test_the_first_death_costs_no_wait_and_later_ones_up_to_five_seconds(quick_deaths: int, seconds: float) -> None:
    assert delay_before(quick_deaths) == pytest.approx(seconds)


def test_a_document_in_memory_can_be_read_again_from_its_start() -> None:
    fd = in_memory(b"settings" * 100_000)
    try:
        assert os.pread(fd, 8, 0) == os.pread(fd, 8, 0) == b"settings"
        assert os.fstat(fd).st_size == 800_000
    finally:
        os.close(fd)
