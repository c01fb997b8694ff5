"""Edits of scopes, and policies held against them, at the size that a caller may choose: nobody else waits for them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.core.errors import Conflict, Forbidden, Invalid
from proxy.services.policy.model import TokenPolicy
from proxy.services.tokens import scope_changes
from proxy.services.tokens.issuance import SCOPES_MOST
from tests.contract.kit import ADMIN, Kit, opened

HELD = [f"e{number}:op{number}" for number in range(SCOPES_MOST)]
WORK: dict[str, Callable[[], object]] = {
    "adding": lambda: scope_changes.adding([f"{text}x" for text in HELD])(HELD),
    "setting": lambda: scope_changes.setting([f"{text}x" for text in HELD])(HELD),
    "removing what is not there": lambda: scope_changes.removing([f"n{text}" for text in HELD])(HELD),
    "removing all": lambda: scope_changes.removing(HELD)(HELD),
    "removing what others are parts of": lambda: scope_changes.removing([f"*:op{n}" for n in range(SCOPES_MOST)])(HELD),
    "a policy": lambda: TokenPolicy(forbidden_scopes=tuple(f"e{n}/1:x" for n in range(SCOPES_MOST))).scope_faults(HELD),
}


@pytest.mark.parametrize("what", WORK)
def test_the_most_scopes_that_there_may_be_do_not_hold_up_the_process(what: str) -> None:
    """Compared each with each they took 40 seconds of the thread that renews every worker's lease."""
    begun = time.monotonic()
    WORK[what]()
    assert time.monotonic() - begun < 10


def test_a_scope_that_another_one_still_allows_is_not_said_to_be_gone() -> None:
    with pytest.raises(Conflict, match=r"things:\*, which covers it"):
        scope_changes.removing(["things:read"])(["things:*", "things:list"])


def test_removing_says_what_still_covers_and_what_remains() -> None:
    edited = scope_changes.removing(["things:read", "things:read"])(["*:read", "things:read", "things/7:read"])
    assert edited.after == ["*:read", "things/7:read"]
    assert edited.warnings == ("*:read still covers things:read", "things/7:read remain, as parts of what was removed")


ANN = "ann@example.org"


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        yield kit


async def test_a_token_widens_none_that_lives_longer_than_itself(kit: Kit) -> None:
    short = kit.acting(await kit.mint(ANN, "short", expires=100.0))
    long = (await kit.mint(ANN, "long", scopes=["things:read"])).view.id
    for edit in (kit.tokens.add_scopes, kit.tokens.set_scopes):
        with pytest.raises(Forbidden) as raised:
            await edit(short, long, ["things:read", "things:list"])
        assert [field for field, _ in raised.value.errors] == ["expires"]
    assert (await kit.tokens.show(ADMIN, long)).scopes == ("things:read",)
    assert (await kit.tokens.remove_scopes(short, long, ["things:read"])).view.scopes == ()


async def test_the_whole_token_is_within_the_one_presented_after_an_edit_and_not_only_what_is_added(kit: Kit) -> None:
    narrow = kit.acting(await kit.mint(ANN, "narrow", scopes=["things:read", "patgate.tokens:*"]))
    wide = (await kit.mint(ANN, "wide", scopes=["things:delete"])).view.id
    with pytest.raises(Forbidden) as raised:
        await kit.tokens.add_scopes(narrow, wide, ["things:read"])
    assert [field for field, _ in raised.value.errors] == ["scopes[0]"]
    await kit.tokens.set_scopes(narrow, wide, ["things:read"])


async def test_a_token_has_at_most_so_many_scopes_in_all_however_few_are_added(kit: Kit) -> None:
    full = (await kit.mint(ANN, "full", scopes=HELD[:-1])).view.id
    assert len((await kit.tokens.add_scopes(ADMIN, full, HELD[-1:])).view.scopes or ()) == SCOPES_MOST
    with pytest.raises(Invalid, match=f"at most {SCOPES_MOST}"):
        await kit.tokens.add_scopes(ADMIN, full, ["more:read"])
    await kit.tokens.add_scopes(ADMIN, full, HELD[:1])
