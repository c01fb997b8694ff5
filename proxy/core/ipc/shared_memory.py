"""The shared memory page through which the authority gives epoch and lease to the workers of one host.

Layout: 64 bytes, unsigned 64-bit integers in native byte order, each at a multiple of 8:

| slot | offset | meaning |
|---|---|---|
| 0 | 0 | magic with the layout's version |
| 1 | 8 | epoch: the number of the last committed change |
| 2 | 16 | lease: CLOCK_BOOTTIME nanoseconds until which workers may decide; 0 is never |
| 3 | 24 | incarnation: the start of the authority that wrote the page |
| 4 | 32 | doubt: the number of a change that was announced although it may not be stored; 0 is none |
| 5 | 40 | ahead: nanoseconds to add to the wall clock of this host when a token's expiry is judged |
| 6-7 | 48 | reserved, zero |

1. One process writes (the authority), any number read. There is no lock, because each slot is an aligned 8-byte word,
   which the supported platforms (x86-64, AArch64) read and write atomically.
2. The epoch never decreases: only ``raise_epoch`` writes it.
3. A reader that finds another magic must not decide anything.
"""

from __future__ import annotations

from typing import Final

from proxy.core.errors import PageError

PAGE_SIZE: Final = 64
MAGIC: Final = int.from_bytes(b"patgate\x01", "big")

SLOT_MAGIC: Final = 0
SLOT_EPOCH: Final = 1
SLOT_LEASE: Final = 2
SLOT_INCARNATION: Final = 3
SLOT_DOUBT: Final = 4
SLOT_AHEAD: Final = 5

_WORD_MAX: Final = 2**64 - 1


class PageView:
    """A view of the page. The hot path may index ``words`` with the SLOT constants.

    Takes a C-contiguous byte view of at least 64 bytes, aligned to 8 (a mapping is), and owns only that view. Raises
    PageError if it is too small or, unless it is ``fresh``, has another magic.
    """

    __slots__ = ("words",)

    def __init__(self, view: memoryview, *, fresh: bool = False) -> None:
        if view.nbytes < PAGE_SIZE:
            raise PageError("the shared page is smaller than 64 bytes")
        self.words: memoryview[int] = view[:PAGE_SIZE].cast("Q")
        if not fresh and self.words[SLOT_MAGIC] != MAGIC:
            self.words.release()
            raise PageError("the shared page has not been written by this version of patgate")

    @classmethod
    def format(cls, view: memoryview, incarnation: int, *, keep_lease: bool = False) -> PageView:
        """Take over the page for a new start of the authority: sets the incarnation and keeps a valid epoch.

        The lease ends now or, with ``keep_lease``, when it runs out.
        """
        page = cls(view, fresh=True)
        words = page.words
        if not keep_lease or words[SLOT_MAGIC] != MAGIC:
            words[SLOT_LEASE] = 0
        if words[SLOT_MAGIC] != MAGIC:
            words[SLOT_EPOCH] = 0
            words[SLOT_DOUBT] = 0
        words[SLOT_AHEAD] = 0
        words[SLOT_INCARNATION] = incarnation
        # Last, so that no reader accepts a half-written page.
        words[SLOT_MAGIC] = MAGIC
        return page

    @property
    def epoch(self) -> int:
        """The number of the last committed change."""
        return self.words[SLOT_EPOCH]

    @property
    def lease_until_ns(self) -> int:
        """CLOCK_BOOTTIME nanoseconds until which workers may decide."""
        return self.words[SLOT_LEASE]

    @property
    def incarnation(self) -> int:
        """The start of the authority that wrote the page."""
        return self.words[SLOT_INCARNATION]

    def raise_epoch(self, epoch: int) -> None:
        """Set the epoch to at least ``epoch``; never lowers it."""
        if epoch > _WORD_MAX:
            raise PageError("the epoch does not fit the shared page")
        if epoch > self.words[SLOT_EPOCH]:
            self.words[SLOT_EPOCH] = epoch

    @property
    def in_doubt(self) -> int:
        """The number of a change that was announced although it may not be stored; 0 is none."""
        return self.words[SLOT_DOUBT]

    def doubt(self, number: int) -> None:
        """Mark the change with this number as in doubt, before announcing it; 0 clears the mark."""
        self.words[SLOT_DOUBT] = number

    @property
    def ahead(self) -> float:
        """Seconds to add to the wall clock of this host when a token's expiry is judged."""
        return self.words[SLOT_AHEAD] / 1e9

    def set_ahead(self, seconds: float) -> None:
        """Judge expiry by a clock that is ``seconds`` ahead of this host's; not by one that is behind it."""
        self.words[SLOT_AHEAD] = min(max(0, int(seconds * 1e9)), _WORD_MAX)

    def renew(self, until_ns: int) -> None:
        """Extend the lease to this CLOCK_BOOTTIME time in nanoseconds; 0 ends it at once."""
        self.words[SLOT_LEASE] = until_ns

    def release(self) -> None:
        """Release the view, so that the mapping can be closed."""
        self.words.release()
