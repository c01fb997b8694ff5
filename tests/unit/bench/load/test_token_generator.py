"""Generated tokens pass every check that needs no secret."""

from __future__ import annotations

from itertools import islice

from bench.load.token_generator import unknown_tokens, wrong_secrets
from bench.load.workload import BRAND, mint
from proxy.core.token import TokenFormat

TOKENS = TokenFormat(BRAND)


def test_strangers_are_well_formed_and_no_two_have_one_prefix() -> None:
    parsed = [TOKENS.parse(token.decode()) for token in islice(unknown_tokens(1), 5000)]
    assert None not in parsed
    assert len({one.prefix for one in parsed if one is not None}) == 5000


def test_strangers_of_another_seed_are_others() -> None:
    assert not set(islice(unknown_tokens(1), 1000)) & set(islice(unknown_tokens(2), 1000))


def test_wrong_secrets_are_well_formed_and_have_the_prefix_of_the_token() -> None:
    (known,) = mint(1)
    parsed = TOKENS.parse(known)
    forged = list(islice(wrong_secrets(known, 1), 5000))
    assert {TOKENS.parse(token.decode()) for token in forged} == {parsed}
    assert known.encode() not in forged
