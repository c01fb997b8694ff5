"""Edits of scopes and their policy checks, also at the largest allowed size, which must not block the process."""

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
def test_the_largest_number_of_scopes_does_not_block_the_process(what: str) -> None:
    """Comparing each with each took 40 seconds of the thread that renews every worker's lease."""
    begun = time.thread_time()
    WORK[what]()
    assert time.thread_time() - begun < 10


def test_removing_a_scope_that_another_one_covers_is_refused() -> None:
    with pytest.raises(Conflict, match=r"things:\*, which covers it"):
        scope_changes.removing(["things:read"])(["things:*", "things:list"])


def test_removing_scopes_warns_of_covering_and_remaining_ones() -> None:
    edited = scope_changes.removing(["things:read", "things:read"])(["*:read", "things:read", "things/7:read"])
    assert edited.after == ["*:read", "things/7:read"]
    assert edited.warnings == ("*:read still covers things:read", "things/7:read remain, as parts of what was removed")


ANN = "ann@example.org"


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        yield kit


async def test_a_token_adds_no_scopes_to_one_that_expires_later(kit: Kit) -> None:
    short = kit.acting(await kit.mint(ANN, "short", expires=100.0))
    long = (await kit.mint(ANN, "long", scopes=["things:read"])).view.id
    for edit in (kit.tokens.add_scopes, kit.tokens.set_scopes):
        with pytest.raises(Forbidden) as raised:
            await edit(short, long, ["things:read", "things:list"])
        assert [field for field, _ in raised.value.errors] == ["expires"]
    assert (await kit.tokens.show(ADMIN, long)).scopes == ("things:read",)
    assert (await kit.tokens.remove_scopes(short, long, ["things:read"])).view.scopes == ()


async def test_after_an_edit_the_whole_token_is_contained_in_the_one_presented(kit: Kit) -> None:
    narrow = kit.acting(await kit.mint(ANN, "narrow", scopes=["things:read", "patgate.tokens:*"]))
    wide = (await kit.mint(ANN, "wide", scopes=["things:delete"])).view.id
    with pytest.raises(Forbidden) as raised:
        await kit.tokens.add_scopes(narrow, wide, ["things:read"])
    assert [field for field, _ in raised.value.errors] == ["scopes[0]"]
    await kit.tokens.set_scopes(narrow, wide, ["things:read"])


async def test_the_limit_on_scopes_applies_to_the_whole_token(kit: Kit) -> None:
    full = (await kit.mint(ANN, "full", scopes=HELD[:-1])).view.id
    assert len((await kit.tokens.add_scopes(ADMIN, full, HELD[-1:])).view.scopes or ()) == SCOPES_MOST
    with pytest.raises(Invalid, match=f"at most {SCOPES_MOST}"):
        await kit.tokens.add_scopes(ADMIN, full, ["more:read"])
    await kit.tokens.add_scopes(ADMIN, full, HELD[:1])
