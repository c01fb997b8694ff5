"""Edits of scopes, and policies held against them, at the size that a caller may choose: nobody else waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from proxy.core.errors import Conflict
from proxy.services import scoping
from proxy.services.minting import SCOPES_MOST
from proxy.services.policy import Policy

HELD = [f"e{number}:op{number}" for number in range(SCOPES_MOST)]
WORK: dict[str, Callable[[], object]] = {
    "adding": lambda: scoping.adding([f"{text}x" for text in HELD])(HELD),
    "setting": lambda: scoping.setting([f"{text}x" for text in HELD])(HELD),
    "removing what is not there": lambda: scoping.removing([f"n{text}" for text in HELD])(HELD),
    "removing all": lambda: scoping.removing(HELD)(HELD),
    "removing what others are parts of": lambda: scoping.removing([f"*:op{n}" for n in range(SCOPES_MOST)])(HELD),
    "a policy": lambda: Policy(forbidden_scopes=tuple(f"e{n}/1:x" for n in range(SCOPES_MOST))).scope_faults(HELD),
}


@pytest.mark.parametrize("what", WORK)
def test_the_most_scopes_that_there_may_be_do_not_hold_up_the_process(what: str) -> None:
    """Compared each with each they took 40 seconds of the thread that renews every worker's lease."""
    begun = time.monotonic()
    WORK[what]()
    assert time.monotonic() - begun < 10


def test_a_scope_that_another_one_still_allows_is_not_said_to_be_gone() -> None:
    with pytest.raises(Conflict, match=r"things:\*, which covers it"):
        scoping.removing(["things:read"])(["things:*", "things:list"])


def test_removing_says_what_still_covers_and_what_remains() -> None:
    edited = scoping.removing(["things:read", "things:read"])(["*:read", "things:read", "things/7:read"])
    assert edited.after == ["*:read", "things/7:read"]
    assert edited.warnings == ("*:read still covers things:read", "things/7:read remain, as parts of what was removed")
