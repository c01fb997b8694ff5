"""What one kind of line may take of the log is bounded, and what is left out is counted."""

from __future__ import annotations

from proxy.observe.log_quota import KIND_BYTES, KINDS_AT_ONCE, LEAST_KIND_BYTES, MOST_KINDS, LogQuota

LINE = 1000


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def written(room: LogQuota, kind: str, lines: int) -> int:
    """How many of so many lines found room."""
    count = 0
    for _ in range(lines):
        if room.has(kind):
            room.take(kind, LINE)
            count += 1
    return count


def test_a_kind_takes_its_bytes_at_once_and_as_many_again_in_a_minute() -> None:
    clock = Clock()
    room = LogQuota(clock=clock)
    most = KIND_BYTES // LINE + 1
    assert written(room, "a", 10_000) == most
    clock.now += 30
    assert written(room, "a", 10_000) <= most // 2 + 1
    clock.now += 6000
    assert written(room, "a", 10_000) == most


def test_what_one_kind_takes_no_other_misses_until_the_process_has_used_up_its_own() -> None:
    room = LogQuota(clock=Clock())
    most = KIND_BYTES // LINE + 1
    assert [written(room, str(kind), 10_000) for kind in range(KINDS_AT_ONCE - 1)] == [most] * (KINDS_AT_ONCE - 1)
    rest = sum(written(room, f"more {kind}", 10_000) for kind in range(100))
    assert rest <= most + 1


def test_lines_left_out_are_counted_once_by_their_kind() -> None:
    room = LogQuota(clock=Clock())
    some = written(room, "a", 500)
    assert room.left_out("a") == 500 - some
    assert room.left_out("a") == 0
    written(room, "a", 7)
    assert room.all_left_out() == 7
    assert room.all_left_out() == 0


def test_processes_share_the_bytes_and_each_has_some() -> None:
    assert written(LogQuota(4, Clock()), "a", 10_000) == KIND_BYTES // 4 // LINE + 1
    assert written(LogQuota(10_000, Clock()), "a", 10_000) == LEAST_KIND_BYTES // LINE + 1


def test_kinds_without_end_take_no_memory_without_end() -> None:
    room = LogQuota(clock=Clock())
    for kind in range(10 * MOST_KINDS):
        room.has(kind)
    assert len(room._kinds) <= MOST_KINDS + 1
