"""Request and response models of the API: validate the shape of requests, and describe both in the OpenAPI document.

Checks of a single field are done here; the services repeat them and check everything that depends on the store.

Rules of this module:
1. Unknown fields are refused: a misspelt ``scope`` must not create a token that may do everything.
2. The OpenAPI document is generated from the models that validate; where the check is a function, the schema describes
   as much of it as it can.
3. A problem states what is allowed, in our own words, and repeats nothing that was sent (``plain``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

from proxy.core.errors import Invalid
from proxy.core.kinds import WORDS
from proxy.core.model import ACTOR_KINDS
from proxy.core.networks import RANGES_MOST, TEXT_MOST, NetworkSyntaxError, parse_network
from proxy.core.permissions import MAX_TEXT, Permission, PermissionSyntaxError
from proxy.services import identifiers
from proxy.services.paging import LIMIT_DEFAULT, LIMIT_MOST, PageRequest

# Validators are built on first use: most are never used, and building a hundred of them would delay a start.
_SHAPE: Final = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class RequestModel(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(**_SHAPE, hide_input_in_errors=True, strict=True)


class Query(BaseModel):
    """The parameters of a query. All arrive as text."""

    model_config = ConfigDict(**_SHAPE, hide_input_in_errors=True)


class ResponseModel(BaseModel):
    """The body of a response. It describes the views of the services; a test compares them.

    Members may be added later: clients ignore members that they do not know.
    """

    model_config = _SHAPE


class Listing(ResponseModel):
    """One page of a list. Subclasses define `items`."""

    next_cursor: Annotated[str | None, Field(description="The `cursor` of the next page; null on the last one.")]
    remaining: Annotated[
        int, Field(ge=0, description="Only with `count=true`: how many items the pages after this one have.")
    ] = 0
    remaining_exact: Annotated[
        bool,
        Field(description="Only with `count=true`: false where `remaining` is a lower bound, counted up to a limit."),
    ] = True


def checked(check: Callable[[str], object]) -> AfterValidator:
    """A validator that returns the value, or reports the problem when ``check`` of the services raises Invalid."""

    def run(value: str) -> str:
        try:
            check(value)
        except Invalid as error:
            raise PydanticCustomError("refused", "{problem}", {"problem": error.errors[0][1]}) from None
        return value

    return AfterValidator(run)


def _permission(text: str) -> str:
    try:
        Permission.parse(text)
    except PermissionSyntaxError as error:
        raise PydanticCustomError("refused", "{problem}", {"problem": str(error)}) from None
    return text


def _network(text: str) -> str:
    try:
        parse_network(text)
    except NetworkSyntaxError as error:
        raise PydanticCustomError("refused", "{problem}", {"problem": f"this {error}"}) from None
    return text


def _whole_number(value: object) -> object:
    if isinstance(value, str) and not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise PydanticCustomError("refused", "a whole number")
    return value


def _number(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", value, re.ASCII) is None:
        raise PydanticCustomError("refused", "a number of seconds")
    return value


def _flag(value: object) -> object:
    if isinstance(value, str) and value not in ("true", "false"):
        raise PydanticCustomError("refused", "true or false")
    return value == "true" if isinstance(value, str) else value


# As core.permissions, except for escapes of more than one byte: no pattern can check that they are UTF-8.
_NAME: Final = r"([!#$&-)+-.0-9;-\[\]-~]|%[0-7][0-9A-Fa-f])+"
_ID: Final = r"([!#$&-)+-\[\]-~]|%[0-7][0-9A-Fa-f])+"


def _shown(**schema: JsonValue) -> Any:
    return Field(json_schema_extra=schema)


if TYPE_CHECKING:
    KindWord = str
    ActorKindWord = str
else:
    # ``Literal`` of a tuple is one of its members; the words stand in the table of kinds only.
    KindWord = Literal[WORDS]
    ActorKindWord = Literal[ACTOR_KINDS]


Title = Annotated[
    str, checked(lambda text: identifiers.title(text, "name")), _shown(minLength=1, maxLength=identifiers.NAME_LENGTH)
]
"""A name for people, on one line."""
OptionalTitle = Annotated[
    str,
    checked(lambda text: identifiers.title(text, "name", required=False)),
    _shown(maxLength=identifiers.NAME_LENGTH),
]
Description = Annotated[str, checked(identifiers.description), _shown(maxLength=identifiers.DESCRIPTION_LENGTH)]
Email = Annotated[str, checked(identifiers.email), _shown(format="email", maxLength=identifiers.EMAIL_LENGTH)]
OrgName = Annotated[str, checked(identifiers.org_name), _shown(pattern="^[a-z0-9][a-z0-9-]{0,62}$")]
Reference = Annotated[str, Field(min_length=1, max_length=identifiers.EMAIL_LENGTH)]
"""A name or an id."""
PermissionText = Annotated[
    str,
    AfterValidator(_permission),
    _shown(
        pattern=rf"^(\*|{_NAME})(/(\*|{_ID}))?:(\*|{_NAME})$",
        maxLength=MAX_TEXT,
        examples=["things:read", "things/42:update", "*:list"],
    ),
]
IpRange = Annotated[
    str,
    AfterValidator(_network),
    _shown(
        pattern=r"^[0-9A-Fa-f:.]+(/[0-9.]+)?$",
        maxLength=TEXT_MOST,
        examples=["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"],
    ),
]
"""A network, or one address."""
Permissions = Annotated[tuple[PermissionText, ...], Field(max_length=1000)]
Seconds = Annotated[float, Field(gt=0, le=1e10, allow_inf_nan=False, description="A duration in seconds.")]
Limit = Annotated[
    int,
    Field(ge=1, le=LIMIT_MOST, description="The maximum number of items on a page."),
    BeforeValidator(_whole_number),
]
QuerySeconds = Annotated[
    float,
    Field(gt=0, le=1e10, allow_inf_nan=False, description="A duration in seconds."),
    BeforeValidator(_number),
]
Flag = Annotated[bool, BeforeValidator(_flag), Field(json_schema_extra={"type": "boolean"})]
Cursor = Annotated[
    str | None, Field(max_length=512, description="Where to continue: `next_cursor` of the page before.")
]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-01-31T12:00:00.000Z"])]


Status = Literal["active", "expired", "revoked"]
Lifetime = Annotated[Seconds, Field(description="A lifetime in seconds; null for the policy's default.")]
Scopes = Annotated[
    tuple[PermissionText, ...],
    Field(min_length=1, max_length=1000, description="Limits what the role allows; null for no limit."),
]


IpRanges = Annotated[
    tuple[IpRange, ...],
    Field(
        min_length=1,
        max_length=RANGES_MOST,
        description="The networks that it may be used from; null for any address.",
    ),
]


class Attachment(ResponseModel):
    """An organisation that an organisation token is attached to, and its permissions there."""

    org_id: str
    org: str
    permissions: list[str]


class Token(ResponseModel):
    """A token, without its value."""

    id: str
    prefix: Annotated[str, Field(description="The public first part of its value.")]
    kind: KindWord
    reach: Literal["personal", "org", "account", "orgs"]
    name: str
    description: str
    user_id: str | None
    user: str | None
    org_id: str | None
    org: str | None
    role: Annotated[str | None, Field(description="The role of a key, set when it was created.")]
    orgs: Annotated[list[Attachment] | None, Field(description="Only for organisation tokens; null for others.")]
    scopes: Annotated[list[str] | None, Field(description="Null: all that the role allows. Empty: nothing.")]
    ip_ranges: Annotated[list[str] | None, Field(description="The networks that it may be used from; null: any.")]
    status: Status
    parent_id: Annotated[str | None, Field(description="The token that created it.")]
    created_by_kind: str
    created_by: str
    created_at: Time
    updated_at: Time
    rotated_at: Time | None
    expires_at: Time | None
    revoked_at: Time | None
    last_used_at: Time | None
    last_used_ip: str | None
    use_count: int


class ChangedToken(Token):
    """A token after a change, or before its deletion."""

    warnings: list[str]


class CreatedToken(Token):
    """A token with its value, which no other response has."""

    token: Annotated[str | None, Field(description="The value; null in the response to a retry.")]
    warnings: list[str]


class PageQuery(Query):
    """Paging of a list."""

    limit: Limit = LIMIT_DEFAULT
    cursor: Cursor = None
    count: Annotated[Flag, Field(description="Add how many items the pages after this one have.")] = False

    @property
    def page(self) -> PageRequest:
        """The page that the query requests."""
        return PageRequest(limit=self.limit, cursor=self.cursor, count=self.count)


_PLAIN: Final[Mapping[str, str]] = {
    "missing": "this field is required",
    "extra_forbidden": "there is no such field",
    "refused": "{problem}",
    "string_type": "this must be text",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "tuple_type": "a list",
    "list_type": "a list",
    "too_long": "at most {max_length} of them",
    "too_short": "at least {min_length} of them",
    "dict_type": "an object",
    "model_type": "an object",
    "enum": "one of {expected}",
    "literal_error": "one of {expected}",
    "bool_parsing": "true or false",
}


def plain(error: Mapping[str, Any]) -> str:
    """The problem of a field in our own words, from pydantic's error with its context."""
    form = _PLAIN.get(str(error["type"]))
    if form is None:
        return "this is not a valid value"
    context = {
        name: f"{value:g}" if isinstance(value, float) else value for name, value in error.get("ctx", {}).items()
    }
    return form.format_map({"problem": error.get("msg", ""), **context})
