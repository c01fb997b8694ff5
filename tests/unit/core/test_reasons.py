"""The table of reasons is complete, and its rows reveal nothing about a token."""

from __future__ import annotations

import pytest

from proxy.core.reasons import TABLE, Challenge, Reason

STATUS = {
    Challenge.INVALID_REQUEST: {400},
    Challenge.CREDENTIAL: {401},
    Challenge.INVALID_TOKEN: {401},
    Challenge.INSUFFICIENT_SCOPE: {403},
    Challenge.NONE: {200, 403, 405, 408, 413, 414, 417, 431, 499, 502, 503, 504, 508},
}


def test_every_reason_has_a_row_and_every_row_a_reason() -> None:
    assert set(TABLE) == set(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_every_row_is_complete_and_its_challenge_fits_its_status(reason: Reason) -> None:
    row = TABLE[reason]
    assert row.status in STATUS[row.challenge]
    assert row.title and row.detail.endswith(".") and row.public
    assert row.retry is (row.status == 503)
    assert (row.title + row.detail).isascii()


def test_every_refused_token_has_the_same_public_answer() -> None:
    rows = {id(row) for row in TABLE.values() if row.challenge is Challenge.INVALID_TOKEN}
    hidden = [reason for reason, row in TABLE.items() if row.public != reason.value]
    assert len(rows) == 1
    assert set(hidden) == {reason for reason, row in TABLE.items() if row.challenge is Challenge.INVALID_TOKEN}
    assert len(hidden) == 8


def test_only_allowed_is_a_success() -> None:
    assert [reason for reason, row in TABLE.items() if row.status < 400] == [Reason.ALLOWED]
