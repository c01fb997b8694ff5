"""Child processes: a cancelled start leaves none, and the document that they read stays readable."""

import asyncio
import os
import signal
from pathlib import Path

from proxy.supervisor.child import Child, in_memory, lifeline
from tests.support.process import children
from tests.unit.supervisor.child_scripts import WELL_BEHAVED, spec


async def test_a_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    lifeline_in, lifeline_out = lifeline()
    well_behaved = spec(WELL_BEHAVED, tmp_path / "diary", lifeline_in)
    before = set(children(os.getpid()))
    for turns in range(40):
        start = asyncio.create_task(Child.spawn(well_behaved), name="start")
        for _ in range(turns):
            await asyncio.sleep(0)
        start.cancel()
        (outcome,) = await asyncio.gather(start, return_exceptions=True)
        if isinstance(outcome, Child):
            outcome.send(signal.SIGKILL)
            await outcome.ended()
            outcome.close_ready_pipe()
        assert set(children(os.getpid())) <= before, f"after {turns} turns of the loop"
    os.close(lifeline_in)
    os.close(lifeline_out)


def test_a_document_in_memory_can_be_read_again_from_its_start() -> None:
    fd = in_memory(b"settings" * 100_000)
    try:
        assert os.pread(fd, 8, 0) == os.pread(fd, 8, 0) == b"settings"
        assert os.fstat(fd).st_size == 800_000
    finally:
        os.close(fd)
