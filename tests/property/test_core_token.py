"""Tokens: an issued token parses, a changed one does not, and the pattern for secret scanners agrees."""

from __future__ import annotations

import re
import string

from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.core.kinds import Kind
from proxy.core.token import ALPHABET, CHECKSUM_LENGTH, TokenFormat, checksum

brands = st.from_regex(r"[a-z][a-z0-9]{1,19}", fullmatch=True)
ids = st.text(alphabet=ALPHABET, min_size=12, max_size=12)
secrets = st.text(alphabet=ALPHABET, min_size=32, max_size=32)


@st.composite
def tokens(draw: st.DrawFn) -> tuple[TokenFormat, Kind, str, str]:
    brand, kind, token_id = draw(brands), draw(st.sampled_from(Kind)), draw(ids)
    body = f"{brand}_{kind.value}_{token_id}_{draw(secrets)}"
    return TokenFormat(brand), kind, token_id, body + checksum(body)


@given(brands, st.sampled_from(Kind), st.none() | ids)
def test_a_minted_token_parses_to_its_parts(brand: str, kind: Kind, token_id: str | None) -> None:
    tokens_of = TokenFormat(brand)
    minted = tokens_of.mint(kind, token_id)
    parsed = tokens_of.parse(minted.token)
    assert parsed is not None
    assert (parsed.kind, parsed.token_id, parsed.prefix) == (kind, minted.token_id, minted.prefix)
    assert token_id in (None, minted.token_id)
    assert re.fullmatch(tokens_of.pattern, minted.token)


@given(tokens(), st.data())
def test_one_changed_character_is_always_refused(
    token: tuple[TokenFormat, Kind, str, str], data: st.DataObject
) -> None:
    tokens_of, _, _, text = token
    assert tokens_of.parse(text) is not None
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from(ALPHABET + "_-. ") | st.characters())
    assume(other != text[at])
    assert tokens_of.parse(text[:at] + other + text[at + 1 :]) is None


@given(tokens(), st.data())
def test_a_missing_added_or_swapped_character_is_always_refused(
    token: tuple[TokenFormat, Kind, str, str], data: st.DataObject
) -> None:
    tokens_of, _, _, text = token
    at = data.draw(st.integers(0, len(text) - 2))
    assert tokens_of.parse(text[:at] + text[at + 1 :]) is None
    assert tokens_of.parse(text[:at] + data.draw(st.sampled_from(ALPHABET)) + text[at:]) is None
    assume(text[at] != text[at + 1])
    assert tokens_of.parse(text[:at] + text[at + 1] + text[at] + text[at + 2 :]) is None


@given(brands, st.text() | st.text(alphabet=string.printable))
def test_parsing_any_text_never_raises(brand: str, text: str) -> None:
    assert TokenFormat(brand).parse(text) is None


@given(st.data())
def test_the_pattern_and_the_checksum_together_are_exactly_parse(data: st.DataObject) -> None:
    tokens_of = TokenFormat("acme")
    text = data.draw(
        st.from_regex(tokens_of.pattern, fullmatch=True)
        | st.from_regex(r"ac?me_(pat|key|kit)_[0-9A-Za-z]{11,13}_[0-9A-Za-z]{37,39}\n?", fullmatch=True)
    )
    if data.draw(st.booleans()):
        text = text[:-CHECKSUM_LENGTH] + checksum("".join(c for c in text[:-CHECKSUM_LENGTH] if c.isascii()))
    fits = re.fullmatch(tokens_of.pattern, text) is not None and text.isascii()
    right = fits and checksum(text[:-CHECKSUM_LENGTH]) == text[-CHECKSUM_LENGTH:]
    assert (tokens_of.parse(text) is not None) == right
