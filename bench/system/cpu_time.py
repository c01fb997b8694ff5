"""Reading the CPU time of processes, as the kernel's scheduler accounts it.

``/proc/<pid>/task/<tid>/schedstat`` begins with the nanoseconds the thread has run, user and kernel together, the
network stack's work on the thread's behalf included (proc(5)). Time spent waiting for a core is not in it, so a busy
machine affects it little. ``/proc/<pid>/stat`` (ticks of 10 ms) is the fallback if the kernel has no schedstat.
"""

import os
from collections.abc import Iterable
from pathlib import Path

_STAT_UTIME = 11
"""Index of utime among the fields of /proc/<pid>/stat after the command name; stime is the next."""


def _process_ns(pid: int) -> int:
    total = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    except FileNotFoundError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[_STAT_UTIME]) + int(fields[_STAT_UTIME + 1])
        return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return total


def cpu_ns(pids: Iterable[int]) -> int:
    """Nanoseconds of CPU that the processes have used since they began, all threads.

    Raises FileNotFoundError if one has ended.
    """
    return sum(_process_ns(pid) for pid in pids)


def waited_ns(pids: Iterable[int]) -> int:
    """Nanoseconds that the threads were runnable while their core ran something else."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[1])
    return total


def ticks(pids: Iterable[int]) -> tuple[int, int]:
    """What the processes have used in user and in kernel mode, in ticks (sysconf ``SC_CLK_TCK``) of their own sampling.

    Precise enough for the share of each in a second or more.
    """
    user = system = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user += int(fields[_STAT_UTIME])
        system += int(fields[_STAT_UTIME + 1])
    return user, system
