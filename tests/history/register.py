"""The question for one token on one node: may a register to which these changes were written give these verdicts.

The register has one bit for each cause, and its verdict is "allowed" while all are 0. A write takes place at one
moment inside its interval, a decision (a read) likewise. Intervals are open: what ends at the moment at which
something else starts was before it.

The search runs through the moments at which something ends, and does nothing before it must ("just in time
linearization"): a write takes place only just before its own end, or just before the end of a read that needs it. What
may have happened so far is a set of *courses*: the register's bits, the pending writes that have taken place, and the
last moment at which the verdict changed. A read is true in a course if it has the verdict that the register has, or if
it began before the verdict last changed, because then it was under way when the register had the other one. Of two
courses that differ in that moment only, the one with the later moment permits every read that the other permits, so
only that one is kept. So a course is small, and the work for a read is constant while no writes overlap.

Writes in doubt stay pending for ever. Those that do the same to the register are interchangeable, so they are used in
the order of their starts. Of two courses that are otherwise equal, only the one that has used fewer of them is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Final, Protocol, TypeAlias

NEVER: Final = -(1 << 200)  # before every moment


class Read(Protocol):
    """What a decision has: times in the unit of the writes, ``start < end``."""

    @property
    def allowed(self) -> bool: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """A change of one cause. ``end`` None: in doubt. Writes with numbers take place in their order."""

    start: int
    end: int | None
    cause: int
    """A bit of its own."""
    allows: bool
    number: int | None


@dataclass(frozen=True, slots=True)
class _Pending:
    place: int
    bit: int
    cause: int
    allows: bool
    optional: bool
    """In doubt and without a number: it may never take place."""
    before: int
    """The index of a write that must take place earlier, or -1."""


_Courses: TypeAlias = dict[tuple[int, int], int]
"""The register's bits and the pending writes that have taken place, with the moment of the last change of verdict."""


class Register:
    """The writes to one token, for reads of any node.

    Numbers must fit the times: no write may have ended before one with a smaller number started.
    """

    def __init__(self, writes: Iterable[Write], denied: int) -> None:
        """``denied``: the causes that forbid the token at first."""
        self._denied = denied
        self._writes = sorted(writes, key=lambda write: write.start)
        self._before = _orders(self._writes)
        starts = ((write.start, 1, index) for index, write in enumerate(self._writes))
        ends = ((write.end, 0, index) for index, write in enumerate(self._writes) if write.end is not None)
        self._events = sorted((*starts, *ends), key=itemgetter(0, 1))

    def first_failure(self, reads: Sequence[Read]) -> int | None:
        """The index of the first read that contradicts the writes and the reads before it; ``reads`` sorted by end."""
        search = _Search(self._writes, self._before, self._denied)
        events, position = self._events, 0
        for index, read in enumerate(reads):
            end = read.end
            while position < len(events) and events[position][0] < end:
                moment, starts, place = events[position]
                position += 1
                if starts:
                    search.begin(place)
                else:
                    search.finish(place, moment)
            allowed, start = read.allowed, read.start
            for (state, _), switched in search.courses.items():
                if (not state) is not allowed and switched <= start:
                    break
            else:
                continue
            search.answer(read)
            if not search.courses:
                return index
        return None


def _orders(writes: Sequence[Write]) -> list[int]:
    """For each write the index of the one that must take place before it, or -1."""
    before = [-1] * len(writes)
    numbered = sorted((write.number, index) for index, write in enumerate(writes) if write.number is not None)
    for (_, earlier), (_, later) in pairwise(numbered):
        before[later] = earlier
    alike: dict[tuple[int, bool], int] = {}
    for index, write in enumerate(writes):
        if write.end is None and write.number is None:
            before[index] = alike.get((write.cause, write.allows), -1)
            alike[write.cause, write.allows] = index
    return before


class _Search:
    """The courses so far, and the writes that are pending: started, and not ended."""

    def __init__(self, writes: Sequence[Write], before: Sequence[int], denied: int) -> None:
        self.courses: _Courses = {(denied, 0): NEVER}
        self._writes = writes
        self._before = before
        self._pending: dict[int, _Pending] = {}
        self._settled: set[int] = {-1}
        self._optional = 0

    def begin(self, place: int) -> None:
        write = self._writes[place]
        taken = {other.bit for other in self._pending.values()}
        bit = next(1 << shift for shift in range(len(taken) + 1) if 1 << shift not in taken)
        optional = write.end is None and write.number is None
        self._pending[place] = _Pending(place, bit, write.cause, write.allows, optional, self._before[place])
        if optional:
            self._optional |= bit

    def finish(self, place: int, moment: int) -> None:
        """Every course has the write, in those that lack it as the last of the writes before this moment."""
        write = self._pending.pop(place)
        after: _Courses = {}
        lacking: _Courses = {}
        for (state, used), switched in self.courses.items():
            if used & write.bit:
                key = state, used & ~write.bit
                after[key] = max(switched, after.get(key, NEVER))
            else:
                lacking[state, used] = switched
        for (state, used), switched in self._reachable(lacking, moment).items():
            if self._ready(write, used):
                changed, latest = _written(write, state, switched, moment)
                after[changed, used] = max(latest, after.get((changed, used), NEVER))
        self._settled.add(place)
        self.courses = self._best(after)

    def answer(self, read: Read) -> None:
        """Every course agrees with the read; where it must be, with writes just before the read's end."""
        kept: _Courses = {}
        lacking: _Courses = {}
        for key, switched in self.courses.items():
            fits = (not key[0]) is read.allowed or switched > read.start
            (kept if fits else lacking)[key] = switched
        for (state, used), switched in self._reachable(lacking, read.end).items():
            if (not state) is read.allowed:
                kept[state, used] = max(switched, kept.get((state, used), NEVER))
        self.courses = self._best(kept)

    def _ready(self, write: _Pending, used: int) -> bool:
        if write.before in self._settled:
            return True
        earlier = self._pending.get(write.before)
        return earlier is not None and bool(used & earlier.bit)

    def _reachable(self, courses: _Courses, moment: int) -> _Courses:
        """The courses after any of the pending writes, or none, at the same moment."""
        reached = dict(courses)
        queue = list(courses)
        while queue:
            state, used = key = queue.pop()
            for write in self._pending.values():
                if used & write.bit or not self._ready(write, used):
                    continue
                changed, switched = _written(write, state, reached[key], moment)
                following = changed, used | write.bit
                if write.optional and changed == state:
                    continue
                if switched > reached.get(following, NEVER - 1):
                    reached[following] = switched
                    queue.append(following)
        return reached

    def _best(self, courses: _Courses) -> _Courses:
        """Without the courses that used more writes in doubt than another that is otherwise no worse."""
        optional = self._optional
        if len(courses) < 2 or not optional:
            return courses
        best: _Courses = {}
        for (state, used), switched in courses.items():
            for (other, spent), later in courses.items():
                same = other == state and spent & ~optional == used & ~optional
                if same and spent != used and spent & ~used == 0 and later >= switched:
                    break
            else:
                best[state, used] = switched
        return best


def _written(write: _Pending, state: int, switched: int, moment: int) -> tuple[int, int]:
    """The register's bits after the write, and the moment at which the verdict last changed."""
    changed = state & ~write.cause if write.allows else state | write.cause
    return changed, moment if (not state) is not (not changed) else switched
