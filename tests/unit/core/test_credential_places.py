"""Credential places: which field of a request is its one credential, and which belong to the application."""

from __future__ import annotations

import base64

import pytest

from proxy.core.credential_places import (
    API_KEY,
    BASIC,
    BEARER,
    DEFAULT,
    WEBSOCKET,
    CredentialPlaces,
    Place,
    Presented,
    PresentedFields,
    offers_mark,
)
from proxy.core.reasons import Reason

PRIVATE = Place(header="PRIVATE-TOKEN")
TOKEN = Place(header="Authorization", scheme="Token")
RAW = Place(header="Authorization")
NAMED = Place(header="X-Login", scheme="Key")
NONE, AMBIGUOUS = Reason.NO_CREDENTIAL, Reason.CREDENTIAL_AMBIGUOUS
MALFORMED, UNSUPPORTED = Reason.CREDENTIAL_MALFORMED, Reason.CREDENTIAL_UNSUPPORTED


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode("latin-1"))


def fields(*pairs: tuple[str, bytes]) -> PresentedFields | None:
    if not pairs:
        return None
    presented = PresentedFields(drop_misplaced=False)
    presented.fields += [(name.lower().encode(), value, name.encode() + b": " + value) for name, value in pairs]
    return presented


def read(
    places: CredentialPlaces, authorization: bytes | None, *pairs: tuple[str, bytes], websocket: bool = False
) -> str | Reason:
    """The token of a request, or the reason why it has none."""
    chosen = places.choose(authorization, fields(*pairs), websocket=websocket)
    return chosen.token() if isinstance(chosen, Presented) else chosen


@pytest.mark.parametrize(
    ("places", "authorization", "expected"),
    [
        ([BEARER], b"Bearer t", "t"),
        ([BEARER], b"bEARER   t", "t"),
        ([BEARER], b"Bearer", MALFORMED),
        ([BEARER], b"Bearer a b", MALFORMED),
        ([BEARER], b"", MALFORMED),
        ([BEARER], b"Bearer\tt", MALFORMED),
        ([BEARER], b"Token t", UNSUPPORTED),
        ([BEARER], b"t", UNSUPPORTED),
        ([BEARER], b"AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=0", UNSUPPORTED),
        ([BEARER], basic("u:t"), UNSUPPORTED),
        ([BASIC], basic("u:t"), "t"),
        ([BASIC], basic("t:"), "t"),
        ([BASIC], basic("t:x-oauth-basic"), "t"),
        ([BASIC], b"Basic %%%", MALFORMED),
        ([TOKEN], b"token t", "t"),
        ([TOKEN], b"Bearer t", UNSUPPORTED),
        ([RAW], b"t", "t"),
        ([RAW], b"Bearer t", UNSUPPORTED),
        ([RAW], b"", MALFORMED),
        ([RAW, BEARER], b"Bearer t", "t"),
        ([RAW, BEARER], b"bearer", MALFORMED),
        ([RAW, BEARER], b"t", "t"),
        ([RAW, BEARER], b'Digest username="u", uri="/"', UNSUPPORTED),
        ([API_KEY], b"Bearer t", UNSUPPORTED),
        ([API_KEY], b"", UNSUPPORTED),
        ([API_KEY], None, NONE),
    ],
)
def test_an_authorization_is_a_credential_in_the_schemes_that_are_on(
    places: list[Place], authorization: bytes | None, expected: str | Reason
) -> None:
    assert read(CredentialPlaces(places), authorization) == expected


@pytest.mark.parametrize(
    ("places", "authorization", "pairs", "expected"),
    [
        ([PRIVATE], None, [("Private-Token", b"t")], "t"),
        ([PRIVATE], None, [("Private-Token", b"")], MALFORMED),
        ([PRIVATE], None, [("Private-Token", b"a"), ("Private-Token", b"a")], AMBIGUOUS),
        ([PRIVATE], None, [("X-Api-Key", b"t")], NONE),
        ([NAMED], None, [("X-Login", b"key t")], "t"),
        ([NAMED], None, [("X-Login", b"key")], MALFORMED),
        ([NAMED], None, [("X-Login", b"t")], UNSUPPORTED),
        ([API_KEY], None, [("X-Api-Key", b"Bearer t")], "Bearer t"),
        ([API_KEY], b"Bearer theirs", [("X-Api-Key", b"t")], "t"),
        ([API_KEY, BEARER], b"Bearer theirs", [("X-Api-Key", b"t")], AMBIGUOUS),
        ([API_KEY, BEARER], basic("them:secret"), [("X-Api-Key", b"t")], "t"),
        ([API_KEY, BEARER], b"AWS4-HMAC-SHA256 Credential=a, Signature=0", [("X-Api-Key", b"t")], "t"),
        ([API_KEY, BEARER], b'Digest username="u"', [("X-Api-Key", b"t")], "t"),
        # An Authorization without a scheme is no application's, and so it may have been meant as the credential.
        ([API_KEY, BEARER], b"", [("X-Api-Key", b"t")], AMBIGUOUS),
        ([API_KEY, RAW], b"theirs", [("X-Api-Key", b"t")], AMBIGUOUS),
        ([API_KEY, PRIVATE], None, [("X-Api-Key", b"t"), ("Private-Token", b"t")], AMBIGUOUS),
        ([API_KEY], None, [("X-Api-Key", b"t"), ("Private-Token", b"theirs")], "t"),
    ],
)
def test_two_open_places_are_ambiguous_and_other_fields_are_the_applications(
    places: list[Place], authorization: bytes | None, pairs: list[tuple[str, bytes]], expected: str | Reason
) -> None:
    assert read(CredentialPlaces(places), authorization, *pairs) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"patgate.bearer.t"], "t"),
        ([b"chat, patgate.bearer.t ,v2"], "t"),
        ([b"chat", b"patgate.bearer.t"], "t"),
        ([b"patgate.bearer.a, patgate.bearer.a"], AMBIGUOUS),
        ([b"patgate.bearer.a", b"patgate.bearer.a"], AMBIGUOUS),
        ([b"patgate.bearer."], MALFORMED),
        ([b"patgate.bearer"], NONE),
        ([b"Patgate.bearer.t"], NONE),
        ([b"chat"], NONE),
        ([b""], NONE),
    ],
)
def test_an_entry_of_a_websockets_subprotocols_is_a_place_in_an_upgrade_only(
    lines: list[bytes], expected: str | Reason
) -> None:
    places = CredentialPlaces([WEBSOCKET, BEARER])
    pairs = [("Sec-WebSocket-Protocol", line) for line in lines]
    assert read(places, None, *pairs, websocket=True) == expected
    assert read(places, None, *pairs) == NONE
    assert read(DEFAULT, None, *pairs, websocket=True) == NONE
    if expected == "t":
        assert read(places, b"Bearer t", *pairs, websocket=True) == AMBIGUOUS


def test_the_cache_key_of_one_value_differs_by_field_and_cannot_be_forged_in_another() -> None:
    keys = {
        CredentialPlaces([place]).choose(authorization, fields(*pairs), websocket=True).cache_key  # type: ignore[union-attr]
        for place, authorization, pairs in (
            (RAW, b"t", ()),
            (API_KEY, None, [("X-Api-Key", b"t")]),
            (PRIVATE, None, [("Private-Token", b"t")]),
            (WEBSOCKET, None, [("Sec-WebSocket-Protocol", b"patgate.bearer.t")]),
        )
    }
    assert len(keys) == 4
    assert all(b"\0" in key for key in keys - {b"t"})


def test_places_are_equal_if_they_accept_and_offer_the_same() -> None:
    assert CredentialPlaces([BEARER, API_KEY], [BEARER]) == CredentialPlaces(
        [API_KEY, Place(header="authorization", scheme="bearer")], [BEARER]
    )
    assert hash(CredentialPlaces([BEARER, API_KEY])) == hash(CredentialPlaces([API_KEY, BEARER]))
    assert CredentialPlaces([BEARER, BASIC]) != CredentialPlaces([BEARER, BASIC], [BASIC])
    assert CredentialPlaces([BEARER]) != CredentialPlaces([BASIC])
    assert CredentialPlaces([BEARER]) != "bearer"


def test_only_the_whole_mark_lets_patgates_subprotocol_be_selected() -> None:
    for line, offered in ((b"a, patgate.bearer", True), (b"patgate.bearer.t", False), (b"xpatgate.bearer", False)):
        presented = fields(("Sec-WebSocket-Protocol", line), ("X-Api-Key", b"patgate.bearer"))
        assert presented is not None
        assert offers_mark(presented) is offered
