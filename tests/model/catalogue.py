"""What is explored: the configurations without a bug, and for each seeded bug one in which it shows itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

from tests.model.bugs import Bug
from tests.model.configuration import Configuration
from tests.model.invariants import Invariant
from tests.model.state import Budget, Kind

LAGGING: Final = "a lagging standby promoted"
FAULTS: Final[Mapping[str, Budget]] = {
    "an authority killed": Budget(crash=1),
    "a node killed": Budget(kill=1),
    "a node stopped": Budget(stop=1),
    "a node cut off": Budget(cut=1),
    "COMMIT in doubt": Budget(doubt=1),
    "the database restarted": Budget(restart=1),
    LAGGING: Budget(promote=1, accept=1),
}

TWICE: Final = Configuration(kinds=(Kind.REVOKE, Kind.REVOKE), at=(0, 1))
"""Both revoke X, at two nodes: the second may have nothing to do."""
OTHER: Final = Configuration(kinds=(Kind.REVOKE, Kind.OTHER), at=(0, 1))
"""The second change concerns another token."""
TO_AND_FRO: Final = Configuration(kinds=(Kind.REVOKE, Kind.RESTORE), at=(0, 1))
RAISED: Final = Configuration(kinds=(Kind.REVOKE, Kind.RAISE), at=(0, 1), own=2)
SYNCHRONOUS: Final = replace(TWICE, faults=Budget(promote=1), synchronous=True)
OVERTAKEN: Final = replace(TWICE, faults=FAULTS[LAGGING], overtaken=2)
"""The promoted standby lacks changes, and has as many of somebody else."""
SECOND_PRIMARY: Final = replace(SYNCHRONOUS, kinds=(Kind.REVOKE, Kind.OTHER), second_primary=True)


def quiet(model: Configuration) -> Configuration:
    """Both calls at node a, which does nothing else: a tenth of the states."""
    return replace(model, quiet=True, at=(0, 0))


def with_faults(model: Configuration, *faults: str) -> Configuration:
    """The configuration in which each of these faults may happen once."""
    sums = (sum(each) for each in zip(*(FAULTS[fault] for fault in faults), strict=True))
    return replace(model, faults=Budget(*sums))


def _each(name: str, model: Configuration, at_once: int, without: str = "") -> dict[str, Configuration]:
    return {
        f"{name}: {' and '.join(faults)}": with_faults(model, *faults)
        for faults in combinations(FAULTS, at_once)
        if without not in faults
    }


ONE: Final = quiet(Configuration(kinds=(Kind.REVOKE, Kind.NONE), at=(0, 0)))

SHORT: Final[Mapping[str, Configuration]] = {
    "two nodes revoke X": TWICE,
    "one node revokes X twice": replace(TWICE, at=(0, 0)),
    "revoke and restore": quiet(TO_AND_FRO),
    "revoke and another change": quiet(OTHER),
    "a node that joins": quiet(replace(OTHER, joined=(True, False))),
    "a lease of two ticks": quiet(replace(TWICE, own=2, bound=2)),
    "a slow clock": quiet(replace(TWICE, margin=1, drift=(0, 1))),
    "the bound raised": quiet(RAISED),
    "a synchronous standby": quiet(SYNCHRONOUS),
    "a second primary": quiet(SECOND_PRIMARY),
    "a lagging standby that was overtaken": quiet(replace(OVERTAKEN, kinds=(Kind.REVOKE, Kind.NONE))),
    **_each("revoke and another change", quiet(OTHER), 1, without=LAGGING),
    **_each("one revocation", ONE, 2),
}
"""Part of ``make test``: each fault but one with two changes, each pair of faults with one."""

DEEP: Final[Mapping[str, Configuration]] = {
    **SHORT,
    "two nodes: revoke and another change": OTHER,
    "two nodes: revoke and restore": TO_AND_FRO,
    "two nodes: a lease of two ticks": replace(TWICE, own=2, bound=2),
    "two nodes: a slow clock": replace(TWICE, margin=1, drift=(0, 1)),
    "two nodes: a node that joins": replace(TWICE, joined=(True, False)),
    "two nodes: a synchronous standby": SYNCHRONOUS,
    "two nodes: a second primary": SECOND_PRIMARY,
    "two nodes: a lagging standby that was overtaken": OVERTAKEN,
    **_each("two nodes revoke X", TWICE, 1),
    f"revoke and another change: {LAGGING}": with_faults(quiet(OTHER), LAGGING),
    **_each("revoke and restore", quiet(TO_AND_FRO), 2),
    **_each("revoke and another change", quiet(OTHER), 2),
}
"""Part of ``make soak``: each fault with two nodes and two changes, each pair with two changes."""


@dataclass(frozen=True)
class Seeded:
    """Where a bug shows itself, and what it breaks."""

    model: Configuration
    breaks: Invariant = Invariant.REVOKED


SEEDED: Final[Mapping[Bug, Seeded]] = {
    Bug.LEASE_FROM_REPLY: Seeded(TWICE),
    Bug.ANSWER_AT_ONCE: Seeded(TWICE),
    Bug.ACKNOWLEDGE_FIRST: Seeded(TWICE),
    Bug.JOIN_IN_ONE_TRANSACTION: Seeded(quiet(replace(OTHER, joined=(True, False)))),
    Bug.RENEWAL_NOT_DURABLE: Seeded(quiet(SECOND_PRIMARY)),
    Bug.REAP_BY_ROW_TIME: Seeded(replace(TWICE, faults=Budget(step=1))),
    Bug.REPLY_WITHOUT_HEAD: Seeded(TWICE),
    Bug.RENEW_WITHOUT_ROW: Seeded(quiet(OTHER)),
    Bug.NO_LOCK: Seeded(OTHER, Invariant.NUMBERS),
    Bug.REPEATABLE_READ: Seeded(OTHER, Invariant.NUMBERS),
    Bug.OWN_KEYS_ONLY: Seeded(OTHER),
    Bug.NOTHING_TO_DO_AT_ONCE: Seeded(TWICE),
    Bug.FENCE_BY_NUMBER: Seeded(with_faults(TWICE, LAGGING)),
    Bug.SHARED_ID: Seeded(TWICE),
    Bug.NO_FENCE: Seeded(with_faults(TWICE, LAGGING)),
    Bug.LEASE_BEFORE_PAGE: Seeded(TWICE),
    Bug.OWN_LEASE: Seeded(replace(TWICE, own=2)),
    Bug.PAGE_SET: Seeded(TWICE, Invariant.PAGE),
    Bug.JOIN_NOT_DURABLE: Seeded(with_faults(TWICE, "the database restarted")),
    Bug.NOTIFY_BELIEVED: Seeded(quiet(replace(OTHER, faults=Budget(forge=1)))),
    Bug.PUSH_WITHOUT_KEYS_BETWEEN: Seeded(OTHER),
    Bug.LOOKUP_LEAVES_PAGE: Seeded(TWICE, Invariant.LINEARIZABLE),
    Bug.LOOKUP_UNCOMPARED: Seeded(quiet(OVERTAKEN)),
    Bug.POLL_UNCOMPARED: Seeded(with_faults(quiet(replace(OTHER, joined=(True, False))), LAGGING)),
    Bug.NUMBER_BEFORE_COMMIT: Seeded(with_faults(OTHER, "COMMIT in doubt")),
    Bug.CHANGE_NOT_DURABLE: Seeded(with_faults(TWICE, "the database restarted"), Invariant.HISTORY),
    Bug.DOUBT_IS_SUCCESS: Seeded(with_faults(TWICE, "COMMIT in doubt"), Invariant.HISTORY),
    Bug.RESOLVED_WITHOUT_LOCK: Seeded(with_faults(TWICE, "COMMIT in doubt"), Invariant.HISTORY),
    Bug.RESOLVED_AT_ONCE: Seeded(with_faults(TWICE, "COMMIT in doubt")),
    Bug.TIMED_BEFORE_COMMIT: Seeded(TWICE),
    Bug.ROWS_OF_THE_TRANSACTION: Seeded(quiet(replace(OTHER, joined=(True, False)))),
    Bug.OWN_NODE_ONLY: Seeded(TWICE),
    Bug.NO_MARGIN: Seeded(quiet(replace(TWICE, margin=1, drift=(0, 1)))),
    Bug.BOUND_FROM_MEMORY: Seeded(quiet(RAISED)),
    Bug.REAP_UNCOMPARED: Seeded(quiet(OTHER)),
    Bug.REAP_AFTER_A_LATE_LOOK: Seeded(quiet(OTHER)),
    Bug.REAP_BY_OLD_BOUND: Seeded(quiet(RAISED)),
    Bug.BOUND_LOWERED: Seeded(
        quiet(Configuration(kinds=(Kind.LOWER, Kind.REVOKE), at=(0, 1), own=2, bound=2)),
    ),
    Bug.WAIT_FOR_THE_DATABASE: Seeded(with_faults(TWICE, "a node cut off"), Invariant.BOUNDED),
    Bug.WAIT_FOR_THE_ROW: Seeded(TWICE, Invariant.BOUNDED),
    Bug.ROW_BEFORE_LEASE: Seeded(with_faults(TWICE, "a node stopped")),
    Bug.WAIT_OVER_A_NEW_HISTORY: Seeded(with_faults(TWICE, LAGGING), Invariant.HISTORY),
    Bug.ACCEPTED_AT_ONCE: Seeded(with_faults(quiet(replace(OTHER, joined=(True, False))), LAGGING)),
    Bug.PAGE_KEPT: Seeded(with_faults(quiet(OTHER), LAGGING), Invariant.LINEARIZABLE),
}
