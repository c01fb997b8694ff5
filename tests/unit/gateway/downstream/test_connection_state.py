"""The states of a client connection: each pair of state and event, and what the table as a whole guarantees."""

from __future__ import annotations

import pytest

from proxy.gateway.downstream.connection_state import TRANSITIONS, ConnectionEvent, ConnectionState, after
from tests.unit.gateway.ingress import connected
from tests.unit.gateway.kit import Gateway

EXPECTED = """
         OPENED HEAD_BEGUN STARTED  REFUSED  ENDED SETTLED  HELD YIELDED  RESUMED SHUT    LEFT    LOST
OPENING  IDLE   -          -        -        -     -        -    -        -       -       -       -
IDLE     -      HEAD       STARTING EXCHANGE -     IDLE     HELD -        -       CLOSING CLOSING -
HEAD     -      HEAD       STARTING EXCHANGE -     HEAD     HELD -        -       CLOSING CLOSING -
HELD     -      HEAD       STARTING EXCHANGE -     IDLE     HELD -        -       CLOSING CLOSING -
STARTING -      -          -        -        NEXT  EXCHANGE -    -        -       -       CLOSING -
NEXT     -      HEAD       STARTING EXCHANGE -     IDLE     -    YIELDING -       CLOSING CLOSING -
YIELDING -      -          -        EXCHANGE -     -        -    -        IDLE    -       CLOSING -
EXCHANGE -      -          -        -        IDLE  -        -    -        -       -       CLOSING -
CLOSING  -      -          -        -        -     CLOSING  -    -        CLOSING -       CLOSING CLOSED
CLOSED   -      -          -        -        -     CLOSED   -    -        CLOSED  -       -       -
"""
"""The whole table: a column an event, a row a state; "-" is a pair that cannot occur."""


def expected() -> dict[tuple[ConnectionState, ConnectionEvent], ConnectionState | None]:
    head, *rows = (line.split() for line in EXPECTED.strip().splitlines())
    return {
        (ConnectionState[state], ConnectionEvent[event]): None if cell == "-" else ConnectionState[cell]
        for state, *cells in rows
        for event, cell in zip(head, cells, strict=True)
    }


PAIRS = expected()
OPEN = frozenset(ConnectionState) - {ConnectionState.OPENING, ConnectionState.CLOSED}


def test_every_pair_of_state_and_event_is_expected_to_do_something() -> None:
    assert PAIRS.keys() == {(state, event) for state in ConnectionState for event in ConnectionEvent}


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda each: each.name)
def test_an_event_leads_to_the_next_state_or_is_a_defect(state: ConnectionState, event: ConnectionEvent) -> None:
    following = PAIRS[state, event]
    if following is None:
        with pytest.raises(RuntimeError, match=f"no transition from {state.name} by {event.name}"):
            after(state, event)
    else:
        assert after(state, event) == following


def test_a_new_connection_can_get_into_every_state() -> None:
    assert reachable(ConnectionState.OPENING) == set(ConnectionState)


@pytest.mark.parametrize("state", sorted(OPEN), ids=lambda each: each.name)
def test_a_client_may_leave_in_every_state_of_an_open_connection(state: ConnectionState) -> None:
    left = after(state, ConnectionEvent.LEFT)
    assert left == ConnectionState.CLOSING
    assert after(left, ConnectionEvent.LOST) == ConnectionState.CLOSED


def test_no_request_starts_on_a_connection_that_is_closing() -> None:
    assert reachable(ConnectionState.CLOSING) == {ConnectionState.CLOSING, ConnectionState.CLOSED}


def test_an_exchange_begins_only_with_a_head_and_is_over_with_its_end_or_its_client() -> None:
    has_exchange = {ConnectionState.STARTING, ConnectionState.EXCHANGE}
    for (state, event), following in TRANSITIONS.items():
        if (state in has_exchange) < (following in has_exchange):
            assert event in (ConnectionEvent.STARTED, ConnectionEvent.REFUSED)
        elif (state in has_exchange) > (following in has_exchange):
            assert event in (ConnectionEvent.ENDED, ConnectionEvent.LEFT)


async def test_a_connection_raises_where_its_state_allows_no_such_event() -> None:
    connection, wire = connected(Gateway(9), "192.0.2.1")
    with pytest.raises(RuntimeError, match="no transition from IDLE by OPENED"):
        connection.connection_made(wire)


def reachable(state: ConnectionState) -> set[ConnectionState]:
    """The states that some events lead to from ``state``, itself included."""
    found, new = {state}, [state]
    while new:
        before = new.pop()
        for following in {to for (of, _), to in TRANSITIONS.items() if of is before} - found:
            found.add(following)
            new.append(following)
    return found
