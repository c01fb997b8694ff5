"""Which store a node follows: the decision over everything that it can see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.authority.consistency.judgement import LOST_CHANGES, OTHER_PLACE, StoreVerdict, judge
from proxy.store.nodes.records import Acceptance, AcceptedBy, Remembered, StoreState

CREATED = Acceptance(id="1", history="here", by=AcceptedBy.CREATION)
OPERATOR = Acceptance(id="2", history="here", by=AcceptedBy.OPERATOR)
STANDBY = Acceptance(id="3", history="there", by=AcceptedBy.SYNCHRONOUS)
STATE = StoreState(
    renewed=True,
    n=10,
    mark=b"m",
    history="here",
    bound=2.0,
    acceptances=(CREATED,),
    remembered=True,
    acknowledged=0,
    database_time=0.0,
)
MEMORY = Remembered(n=9, mark=b"l", history="here", acceptances=frozenset({"1"}))


def _verdict(state: StoreState, memory: Remembered | None, *, page: int = 9, trust: bool = False) -> StoreVerdict:
    return judge(state, memory, page=page, trust_standby=trust).verdict


def test_the_store_that_was_followed_before_is_followed() -> None:
    assert _verdict(STATE, MEMORY) is StoreVerdict.KNOWN
    assert _verdict(STATE, None) is StoreVerdict.KNOWN, "a new host remembers nothing"


def test_a_new_store_is_recorded() -> None:
    assert _verdict(replace(STATE, acceptances=()), None) is StoreVerdict.NEW
    assert _verdict(replace(STATE, acceptances=()), MEMORY) is StoreVerdict.NEW


@pytest.mark.parametrize("trust", [False, True])
def test_a_store_without_a_remembered_change_is_refused(trust: bool) -> None:
    found = judge(replace(STATE, remembered=False), MEMORY, page=9, trust_standby=trust)
    assert (found.verdict, found.why) == (StoreVerdict.REFUSED, LOST_CHANGES)


@pytest.mark.parametrize("memory", [None, MEMORY])
def test_a_store_with_a_lower_number_than_the_page_is_refused(memory: Remembered | None) -> None:
    assert _verdict(STATE, memory, page=11) is StoreVerdict.REFUSED
    assert _verdict(STATE, memory, page=10) is StoreVerdict.KNOWN


@pytest.mark.parametrize("memory", [None, MEMORY])
def test_a_store_in_another_place_is_refused_unless_standbys_are_synchronous(memory: Remembered | None) -> None:
    moved = replace(STATE, history="there")
    assert judge(moved, memory, page=9, trust_standby=False).why == OTHER_PLACE
    assert _verdict(moved, memory, trust=True) is StoreVerdict.MOVED
    assert _verdict(replace(moved, acceptances=(CREATED, STANDBY)), memory) is StoreVerdict.KNOWN


@pytest.mark.parametrize("trust", [False, True])
def test_a_former_primary_that_knows_nothing_of_the_present_one_is_refused(trust: bool) -> None:
    later = replace(MEMORY, history="there", acceptances=frozenset({"1", "3"}))
    assert _verdict(STATE, later, trust=trust) is StoreVerdict.REFUSED


def test_an_operator_overrules_a_refusal_once() -> None:
    lost = replace(STATE, remembered=False, acceptances=(CREATED, OPERATOR))
    assert _verdict(lost, MEMORY) is StoreVerdict.OVERRULED
    seen = replace(MEMORY, acceptances=frozenset({"1", "2"}))
    assert _verdict(lost, seen) is StoreVerdict.REFUSED, "the acceptance is older than what this node remembers"
    assert _verdict(replace(lost, n=5), seen) is StoreVerdict.REFUSED


def test_an_operator_overrules_the_loss_of_numbers_that_only_the_page_knows() -> None:
    assert _verdict(replace(STATE, acceptances=(CREATED, OPERATOR)), MEMORY, page=11) is StoreVerdict.OVERRULED


def test_an_acceptance_overrules_a_node_that_refuses_nothing() -> None:
    """The acceptance has made the store forget its changes: the remembered one may have been lost before that."""
    assert _verdict(replace(STATE, acceptances=(CREATED, OPERATOR)), MEMORY) is StoreVerdict.OVERRULED
    seen = replace(MEMORY, acceptances=frozenset({"1", "2"}))
    assert _verdict(replace(STATE, acceptances=(CREATED, OPERATOR)), seen) is StoreVerdict.KNOWN


def test_an_acceptance_of_another_place_is_none_of_this_one() -> None:
    elsewhere = replace(OPERATOR, history="there")
    assert _verdict(replace(STATE, remembered=False, acceptances=(CREATED, elsewhere)), MEMORY) is StoreVerdict.REFUSED


def test_a_node_without_memory_is_overruled_by_no_acceptance_that_may_be_old() -> None:
    assert _verdict(replace(STATE, acceptances=(CREATED, OPERATOR)), None, page=11) is StoreVerdict.REFUSED


def test_a_standby_that_another_node_has_accepted_still_needs_the_remembered_change() -> None:
    moved = replace(STATE, history="there", acceptances=(CREATED, STANDBY), remembered=False)
    assert _verdict(moved, MEMORY, trust=True) is StoreVerdict.REFUSED
