"""The token format, its public parts, and the secret that it never shows."""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib

import pytest

from proxy.core.kinds import Kind
from proxy.core.token import ALPHABET, TokenFormat, checksum, digest, verify_digest

ACME = TokenFormat("acme")


def test_a_minted_token_has_the_published_shape() -> None:
    minted = ACME.mint(Kind.PAT)
    assert re.fullmatch(r"acme_pat_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}", minted.token)
    assert minted.prefix == f"acme_pat_{minted.token_id}" == ACME.prefix_of(Kind.PAT, minted.token_id)
    assert minted.token.startswith(minted.prefix + "_")


def test_the_checksum_is_the_padded_base62_crc32_of_everything_before_it() -> None:
    value = 0
    for char in checksum("acme_pat_000000000000_x"):
        value = value * 62 + ALPHABET.index(char)
    assert value == zlib.crc32(b"acme_pat_000000000000_x")
    assert checksum("") == "000000"


def test_rotation_keeps_id_and_prefix_and_changes_the_secret() -> None:
    first = ACME.mint(Kind.KEY)
    second = ACME.mint(Kind.KEY, first.token_id)
    assert (second.token_id, second.prefix) == (first.token_id, first.prefix)
    assert second.token != first.token


@pytest.mark.parametrize("token_id", ["", "short", "x" * 13, "abc_EF123456", "abcDEF12345é"])
def test_mint_refuses_an_invalid_id(token_id: str) -> None:
    with pytest.raises(ValueError, match="12"):
        ACME.mint(Kind.PAT, token_id)


@pytest.mark.parametrize("brand", ["", "a", "1ab", "Acme", "ac-me", "ac_me", "a" * 21, "acme\n", "acmé"])
def test_a_brand_outside_its_grammar_is_refused(brand: str) -> None:
    with pytest.raises(ValueError, match="brand"):
        TokenFormat(brand)


@pytest.mark.parametrize("change", [" {}", "{} ", "{}\n", "{}0", "x{}", "", "Bearer {}", "{}\0"])
def test_only_a_whole_token_parses(change: str) -> None:
    assert ACME.parse(change.format(ACME.mint(Kind.PAT).token)) is None


def test_a_token_of_another_brand_does_not_parse() -> None:
    assert ACME.parse(TokenFormat("acmf").mint(Kind.PAT).token) is None


def test_the_scanner_pattern_finds_a_token_in_text() -> None:
    token = ACME.mint(Kind.KEY).token
    assert re.findall(ACME.pattern, f'export TOKEN="{token}"; # {token}x') == [token]


def test_no_repr_shows_a_secret() -> None:
    minted = ACME.mint(Kind.PAT)
    secret = minted.token.rpartition("_")[2]
    assert secret not in repr(minted)
    assert secret not in repr(ACME.parse(minted.token))


def test_a_digest_is_hmac_sha256_and_matches_only_its_token_and_key() -> None:
    made = digest(b"k" * 32, b"token")
    assert made == hmac.new(b"k" * 32, b"token", hashlib.sha256).digest()
    assert verify_digest(b"k" * 32, b"token", made)
    assert not verify_digest(b"k" * 32, b"tokem", made)
    assert not verify_digest(b"j" * 32, b"token", made)
    assert not verify_digest(b"k" * 32, b"token", b"")
