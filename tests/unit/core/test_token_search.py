"""Searching for misplaced tokens."""

from __future__ import annotations

import base64
import time
from urllib.parse import quote

import pytest

from proxy.core.kinds import Kind
from proxy.core.token import TokenFormat
from proxy.core.token_search import TokenSearch

TOKENS = TokenFormat("acme")
SEARCH = TokenSearch(TOKENS)


@pytest.fixture(params=list(Kind))
def token(request: pytest.FixtureRequest) -> bytes:
    return TOKENS.mint(request.param).token.encode()


def escape_all(text: bytes, digits: str) -> bytes:
    return b"".join(f"%{byte:{digits}}".encode() for byte in text)


def test_a_token_is_found_at_any_position(token: bytes) -> None:
    for text in (token, b"x" + token + b"y", b"a=b; t=" + token, b"%7B" + token, b"?a=%zz&t=" + token):
        assert SEARCH.contains(text), text


@pytest.mark.parametrize("digits", ["02x", "02X"])
def test_a_token_is_found_with_any_character_escaped(token: bytes, digits: str) -> None:
    for at in range(len(token)):
        escaped = token[:at] + escape_all(token[at : at + 1], digits) + token[at + 1 :]
        assert SEARCH.contains(b"?t=" + escaped), escaped
    assert SEARCH.contains(escape_all(token, digits))
    assert SEARCH.contains(quote(token).encode())


def test_a_token_with_a_wrong_checksum_is_found(token: bytes) -> None:
    assert SEARCH.contains(token[:-1] + (b"0" if token[-1:] != b"0" else b"1"))


def test_an_incomplete_token_is_not_found(token: bytes) -> None:
    for text in (b"", b"acme_", b"acme_pat_", token[:-1], token[1:], token.upper(), token.replace(b"acme", b"acne")):
        assert not SEARCH.contains(text), text
    # A backend that decodes once does not get a token from a doubly escaped one.
    assert not SEARCH.contains(token.replace(b"_", b"%255F"))


@pytest.mark.parametrize("before", [b"", b"x", b"git:", b'{"password":"'])
def test_a_token_is_found_in_both_base64_alphabets_with_or_without_padding(token: bytes, before: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        encoded = encode(before + token + b"\xff\xfe")
        for value in (encoded, encoded.rstrip(b"="), b"Basic " + encoded, b"token." + encoded.rstrip(b"=")):
            assert SEARCH.contains_credential(value), value


@pytest.mark.parametrize("before", [b"v1/", b"v1-", b"basic/", b"k8s-io_", b"AB", b"A"])
def test_a_token_in_base64_is_found_after_other_base64_characters(token: bytes, before: bytes) -> None:
    """A reader that removes the characters before it and decodes the rest gets the token."""
    encoded = base64.b64encode(b"git:" + token)
    assert SEARCH.contains_credential(before + encoded)
    assert SEARCH.contains_credential(b"Basic " + before + b" " + encoded)


def test_basic_credentials_are_decoded_as_leniently_as_any_backend_might(token: bytes) -> None:
    encoded = base64.b64encode(b"git:" + token)
    assert SEARCH.contains_credential(b"bAsIc   " + encoded[:20] + b" !\t" + encoded[20:])


def test_only_lines_without_a_token_are_kept(token: bytes) -> None:
    lines = b"\r\nA: b\r\nCookie: t=" + token + b"\r\nC: d%5F"
    assert SEARCH.without(lines) == b"\r\nA: b\r\nC: d%5F"


def test_the_time_of_a_search_is_linear_in_the_text() -> None:
    for piece in (b"acme_pat_", b"%5f", b"acme_pat_0123456789ab_", b"A" * 23 + b"-"):
        small, large = piece * 200, piece * 3200
        costs = []
        for text in (small, large):
            began = time.process_time()
            for _ in range(20):
                assert not SEARCH.contains_credential(text)
            costs.append(time.process_time() - began)
        assert costs[1] < 0.1 + 64 * costs[0], piece
