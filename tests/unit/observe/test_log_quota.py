"""The log quota limits each kind of line and counts the lines left out."""

from __future__ import annotations

from proxy.observe.log_quota import KIND_BYTES, KINDS_AT_ONCE, LEAST_KIND_BYTES, MOST_KINDS, LogQuota

LINE = 1000


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def written(quota: LogQuota, kind: str, lines: int) -> int:
    """The number of these lines that the quota admits."""
    count = 0
    for _ in range(lines):
        if quota.has_room(kind):
            quota.take(kind, LINE)
            count += 1
    return count


def test_a_kind_may_write_its_bytes_at_once_and_as_many_again_in_a_minute() -> None:
    clock = Clock()
    quota = LogQuota(clock=clock)
    most = KIND_BYTES // LINE + 1
    assert written(quota, "a", 10_000) == most
    clock.now += 30
    assert written(quota, "a", 10_000) <= most // 2 + 1
    clock.now += 6000
    assert written(quota, "a", 10_000) == most


def test_kinds_do_not_affect_each_other_until_the_quota_of_the_process_is_used_up() -> None:
    quota = LogQuota(clock=Clock())
    most = KIND_BYTES // LINE + 1
    assert [written(quota, str(kind), 10_000) for kind in range(KINDS_AT_ONCE - 1)] == [most] * (KINDS_AT_ONCE - 1)
    rest = sum(written(quota, f"more {kind}", 10_000) for kind in range(100))
    assert rest <= most + 1


def test_lines_left_out_are_counted_once_by_their_kind() -> None:
    quota = LogQuota(clock=Clock())
    some = written(quota, "a", 500)
    assert quota.left_out("a") == 500 - some
    assert quota.left_out("a") == 0
    written(quota, "a", 7)
    assert quota.all_left_out() == 7
    assert quota.all_left_out() == 0


def test_processes_share_the_bytes_and_each_has_a_minimum() -> None:
    assert written(LogQuota(4, Clock()), "a", 10_000) == KIND_BYTES // 4 // LINE + 1
    assert written(LogQuota(10_000, Clock()), "a", 10_000) == LEAST_KIND_BYTES // LINE + 1


def test_the_number_of_kinds_in_memory_is_bounded() -> None:
    quota = LogQuota(clock=Clock())
    for kind in range(10 * MOST_KINDS):
        quota.has_room(kind)
    assert len(quota._kinds) <= MOST_KINDS + 1
