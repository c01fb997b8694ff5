"""The history checker: what clients saw on several nodes, judged against the promise.

The promise: after the revoking call has answered, no request that begins later is accepted on any node. Before that
answer nodes may differ. Each node is linearizable by itself, and a change comes into force on a node at some moment
between call and answer. So the checker looks at each token on each node alone. It looks for moments at which the
changes came into force on that node, such that each decision has the verdict of some moment between its start and its
end. If there are none, the history is a violation. For one revocation that nothing takes back, that is the formula

    max(latest start of an allow, start of the call) < min(earliest end of a deny, end of the call)

which must hold on each node.

How to record a history:

- All times are nanoseconds of one clock that all clients share (``time.monotonic_ns()`` on one machine). The start is
  read before the first byte is sent, the end after the verdict has been received; the end is later than the start.
- A *token* is all that has a verdict of its own: if a scope is removed, "token 7" and "token 7, write" are two.
- A decision is a verdict: 200 is an allow, 401 and 403 are denies. An answer 503 (lease over, store away) and a request
  without an answer are no verdicts and are left out. If the backend got a request whose answer was lost, then it is an
  allow that ended when the backend got it.
- A change that was retried with the same ``Idempotency-Key`` is one change: from the first call to the last answer. If
  the answer says that certainly nothing was changed, it failed; if no answer says what happened, it is in doubt.
- A change concerns all tokens whose verdict depends on it (a role: each token that has only this role). A token is
  allowed while no *cause* forbids it. Revocation, suspension and a role are three causes: each is set to and fro by its
  own changes.
- A token that does not exist yet is denied: name ``(token, cause)`` in ``denied_at_first``, and let the mint be a change
  with this cause that allows it. (Rotation: one change that forbids the old token, and one that allows the new.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What the caller of a change learned."""

    ACKNOWLEDGED = "acknowledged"
    """It is in force: it came into force on each node between ``start`` and ``end``."""
    IN_DOUBT = "in doubt"
    """It may have come into force, or may still do so at any moment until the end of the history, or never will."""
    FAILED = "failed"
    """Certainly nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One verdict that a client saw. Times are nanoseconds, ``start < end``."""

    token: str
    node: str
    allowed: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One call that changes verdicts. Times are nanoseconds, ``start < end``; the end of one in doubt has no meaning.

    ``number`` is the change's number in the store, if it is known. Changes with numbers came into force in their order,
    and one in doubt that has a number is known to have come into force, at an unknown moment after its start. Without
    numbers every order is tried that the times permit.
    """

    tokens: tuple[str, ...]
    allows: bool
    start: int
    end: int
    cause: str = "token"
    outcome: Outcome = Outcome.ACKNOWLEDGED
    number: int | None = None
    name: str = ""
    """How a report names it, such as ``revoke``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """Decisions on one node that cannot all be true; ``str()`` says it in words.

    ``decisions``: nothing can be left out of them. ``changes``: the token's changes that are near to them in time.
    """

    token: str
    node: str
    decisions: tuple[Decision, ...]
    changes: tuple[Change, ...]


def violations(
    decisions: Iterable[Decision],
    changes: Iterable[Change],
    *,
    denied_at_first: Collection[tuple[str, str]] = (),
) -> list[Violation]:
    """The first violation of each token on each node, by the time at which it was seen; empty: the history is right.

    Exact. O(n log n) in the decisions; exponential only in the number of changes of one token that overlap in time.
    Raises ValueError for a decision or a change that does not end after its start.
    """
    raise NotImplementedError
