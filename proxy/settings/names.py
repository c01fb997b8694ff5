"""Types for names in the configuration: brands, permissions, path patterns, operations, hosts, methods, headers.

Where the core has a parser for a name, the validator uses it, so that every loaded name works at run time. Validators
raise ``ValueError`` with one sentence.
"""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, SecretStr

from proxy.core.identity import IdentityNameError, check_edited_name, check_field_name, check_removed_name
from proxy.core.permissions import Permission, PermissionSyntaxError, valid_operation
from proxy.core.request.claims import may_be_believed
from proxy.core.request.query import ANY, PLAIN
from proxy.core.request.request_reading import host_name
from proxy.core.routes import PatternError, validate_pattern, validate_prefix
from proxy.core.token import TokenFormat
from proxy.settings.values import quoted

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST: Final = re.compile(
    r"(?:\*\.)?[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*|\[[0-9a-f:.]+\]"
)
_QUERY_LIMIT: Final = 64
_METHOD: Final = re.compile(r"[A-Z][A-Z0-9-]{0,31}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_LONGEST_VALUE: Final = 8192


def _brand(text: str) -> str:
    try:
        TokenFormat(text)
    except ValueError:
        raise ValueError(
            f"{quoted(text)} is not a brand; it is 2 to 20 lower-case letters and digits, a letter first"
        ) from None
    return text


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{quoted(text)} is not a name; it is up to 64 letters, digits and . _ -, a letter or digit first"
        )
    return text


def _permission(text: str) -> str:
    try:
        Permission.parse(text)
    except PermissionSyntaxError as error:
        raise ValueError(f"{quoted(text)} is not a permission: {error}") from None
    return text


def _operation(text: str) -> str:
    if not valid_operation(text):
        raise ValueError(
            f"{quoted(text)} is not an operation; it is up to 64 letters, digits and . _ -, such as read or publish"
        )
    return text


def _entity(text: str) -> str:
    """An entity in the decoded form that matching compares, which no permission reads as a wildcard."""
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{quoted(text)} is not an entity; it is one word such as things, of letters, digits and . _ -"
        )
    return text


def _pattern(text: str) -> str:
    try:
        validate_pattern(text)
    except PatternError as error:
        raise ValueError(f"{quoted(text)} is not a path pattern: {error}") from None
    return text


def _prefix(text: str) -> str:
    try:
        validate_prefix(text, text)
    except PatternError as error:
        raise ValueError(f"{quoted(text)} is not a prefix of a path: {error}") from None
    return text


def _query_name(text: str) -> str:
    if not text or len(text) > _QUERY_LIMIT or PLAIN.fullmatch(text) is None:
        raise ValueError(f"{quoted(text)} is not a query parameter; it is up to 64 letters, digits and - . _ ~")
    return text


def _query_value(text: str) -> str:
    if text != ANY and (len(text) > _QUERY_LIMIT or PLAIN.fullmatch(text) is None):
        raise ValueError(
            f"{quoted(text)} is not a value for a condition; it is up to 64 letters, digits and - . _ ~, or * for any"
        )
    return text


def _host(text: str) -> str:
    lowered = text.lower()
    if not _HOST.fullmatch(lowered) or len(lowered) > 253:
        raise ValueError(f"{quoted(text)} is not a host; write api.example.com or *.example.com, without a port")
    if lowered.startswith("*."):
        return lowered
    # Normalise it like the host of a request: an address in brackets has one form.
    normalised = host_name(lowered.encode("ascii"))
    if normalised is None:
        raise ValueError(f"{quoted(text)} is not a host: no request can name it")
    return normalised


def _method(text: str) -> str:
    if not _METHOD.fullmatch(text):
        raise ValueError(f"{quoted(text)} is not a method; methods are written in capitals, such as POST")
    if text == "HEAD":
        raise ValueError("HEAD counts as GET; name GET")
    if text in ("CONNECT", "TRACE"):
        raise ValueError(f"{text} is always refused and cannot be routed")
    return text


def _header(text: str) -> str:
    try:
        check_field_name(text)
    except IdentityNameError as error:
        raise ValueError(f"{quoted(text)} {error}") from None
    return text


def _edited_header(text: str) -> str:
    try:
        check_edited_name(text)
    except IdentityNameError as error:
        raise ValueError(f"{quoted(text)} {error}") from None
    return text


def _removed_header(text: str) -> str:
    try:
        check_removed_name(text)
    except IdentityNameError as error:
        raise ValueError(f"{quoted(text)} {error}") from None
    return text


def field_value_problem(text: str) -> str | None:
    """Why a text cannot be the value of a header; None if it can. The text is not repeated: it may be a secret."""
    if len(text) > _LONGEST_VALUE:
        return f"must be at most {_LONGEST_VALUE} characters"
    if not _VALUE.fullmatch(text):
        return "must be visible ASCII characters, spaces and tabs"
    return "must not begin or end with white space" if text != text.strip(" \t") else None


def _field_value(value: SecretStr) -> SecretStr:
    problem = field_value_problem(value.get_secret_value())
    if problem is not None:
        raise ValueError(problem)
    return value


def _field_text(text: str) -> str:
    problem = field_value_problem(text.rstrip(" "))
    if problem is not None:
        raise ValueError(problem)
    return text


def _trusted_claim(text: str) -> str:
    if not may_be_believed(text):
        raise ValueError(
            f"{quoted(text)} is not a header that may be passed on from a trusted peer; "
            "docs/backends.md lists the allowed ones, which describe the client's address or transport"
        )
    return text


Brand = Annotated[str, AfterValidator(_brand)]
Name = Annotated[str, AfterValidator(_name)]
PermissionText = Annotated[str, AfterValidator(_permission)]
EntityName = Annotated[str, AfterValidator(_entity)]
OperationName = Annotated[str, AfterValidator(_operation)]
PathPattern = Annotated[str, AfterValidator(_pattern)]
PathPrefix = Annotated[str, AfterValidator(_prefix)]
QueryName = Annotated[str, AfterValidator(_query_name)]
QueryValue = Annotated[str, AfterValidator(_query_value)]
HostPattern = Annotated[str, AfterValidator(_host)]
HeaderName = Annotated[str, AfterValidator(_header)]
EditedHeader = Annotated[str, AfterValidator(_edited_header)]
RemovedHeader = Annotated[str, AfterValidator(_removed_header)]
FieldValue = Annotated[SecretStr, AfterValidator(_field_value)]
FieldText = Annotated[str, AfterValidator(_field_text)]
TrustedClaim = Annotated[str, AfterValidator(_trusted_claim)]
Method = Annotated[str, AfterValidator(_method)]
