"""The shared memory page: no sequence of operations lowers its epoch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.ipc.shared_memory import PAGE_SIZE, PageView

words = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(st.sampled_from(["raise", "renew", "restart"]), words), max_size=20))
def test_the_epoch_is_the_highest_ever_raised_and_the_lease_the_last_granted(steps: list[tuple[str, int]]) -> None:
    memory = memoryview(bytearray(PAGE_SIZE))
    writer, reader = PageView.format(memory, incarnation=0), PageView(memory)
    highest = lease = incarnation = 0
    for step, value in steps:
        if step == "raise":
            writer.raise_epoch(value)
            highest = max(highest, value)
        elif step == "renew":
            writer.renew(value)
            lease = value
        else:
            writer = PageView.format(memory, incarnation=value)
            lease, incarnation = 0, value
        assert (reader.epoch, reader.lease_until_ns, reader.incarnation) == (highest, lease, incarnation)
