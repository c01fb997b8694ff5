"""The places of a request where a token may be presented, and the schemes that challenges name."""

import re
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema

from proxy.core.credential_places import API_KEY, BASIC, BEARER, WEBSOCKET, WEBSOCKET_FIELD, Place
from proxy.core.identity import IdentityNameError, check_field_name
from proxy.core.request.claims import FAMILY_NAMES, KIND_OF, fold
from proxy.settings.values import quoted

WORDS: Final = {"bearer": BEARER, "basic": BASIC, "x-api-key": API_KEY, "websocket-protocol": WEBSOCKET}
_WORD_OF: Final = {place: word for word, place in WORDS.items()}
_BY_KEY: Final = {place.key: place for place in WORDS.values()}
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")
_HEADER: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_MEANING: Final = frozenset((b"max-forwards", b"origin", b"range", b"if", b"destination", b"user-agent", b"accept"))
"""Names of usual fields with another meaning, which the table of reserved names does not have."""
_NO_PLACE: Final = (
    "must be bearer, basic, x-api-key, websocket-protocol, { header: NAME } or { header: NAME, scheme: WORD }"
)


def parse_place(value: object) -> Place:
    """``bearer`` or ``{header: …, scheme: …}`` → place; raises ValueError."""
    if isinstance(value, Place):
        return value
    if isinstance(value, str):
        place = WORDS.get(value)
        if place is None:
            raise ValueError(f"{_NO_PLACE}, not {quoted(value)}")
        return place
    if not isinstance(value, dict) or "header" not in value or not value.keys() <= {"header", "scheme"}:
        raise ValueError(_NO_PLACE)
    header, scheme = value["header"], value.get("scheme")
    if not isinstance(header, str) or _HEADER.fullmatch(header) is None:
        raise ValueError("the header of a place is a field name of letters, digits and -, such as PRIVATE-TOKEN")
    if scheme is not None and (not isinstance(scheme, str) or _SCHEME.fullmatch(scheme) is None):
        raise ValueError("the scheme of a place is one word of letters, digits and -, such as token")
    place = Place(header=header, scheme=scheme or "")
    return _BY_KEY.get(place.key) or _checked(place)


def _checked(place: Place) -> Place:
    """``place``, unless its field has a meaning already; raises ValueError."""
    name = fold(place.header.encode("ascii"))
    if name in (b"authorization", b"x-api-key"):
        return place
    if name == WEBSOCKET_FIELD:
        raise ValueError("Sec-WebSocket-Protocol holds a token only as websocket-protocol")
    try:
        check_field_name(place.header)
    except IdentityNameError as error:
        raise ValueError(f"{quoted(place.header)} {error}") from None
    if name in KIND_OF or name in _MEANING or name.startswith((*FAMILY_NAMES, b"sec-", b"access-control-")):
        raise ValueError(f"{quoted(place.header)} has another meaning, so it cannot hold a token")
    return place


def _written(place: Place) -> Any:
    """``place`` as in a file."""
    word = _WORD_OF.get(place)
    if word is not None:
        return word
    return {"header": place.header, "scheme": place.scheme} if place.scheme else {"header": place.header}


def place_name(place: Place) -> str:
    """``place`` in one text, the same for the same place: its word, or its header and scheme in lower case."""
    return _WORD_OF.get(place) or " ".join(each.decode("ascii") for each in place.key if each)


def _scheme(text: str) -> str:
    if _SCHEME.fullmatch(text) is None:
        raise ValueError(f"{quoted(text)} is not a scheme; write bearer, basic or the scheme of a place")
    return text.lower()


CredentialPlace = Annotated[
    Place,
    PlainValidator(parse_place),
    PlainSerializer(_written),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": list(WORDS)},
                {
                    "type": "object",
                    "properties": {
                        "header": {"type": "string", "pattern": f"^{_HEADER.pattern}$", "description": "Its name."},
                        "scheme": {
                            "type": "string",
                            "pattern": f"^{_SCHEME.pattern}$",
                            "description": "The word before the token; without it the whole value is the token.",
                        },
                    },
                    "required": ["header"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
"""A place; in a file a word, or a header with or without a scheme."""

Places = Annotated[tuple[CredentialPlace, ...], Field(min_length=1, max_length=16)]
Challenged = Annotated[tuple[Annotated[str, AfterValidator(_scheme)], ...], Field(min_length=1)]
