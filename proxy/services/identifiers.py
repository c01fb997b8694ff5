"""Generates ids, and validates names, emails and descriptions.

1. An id is ``usr_``, ``org_`` or ``inv_`` and 12 base62 characters from the system's CSPRNG. An email has an ``@`` and
   an organisation's name has no ``_``, so a reference is never both an id and a name.
2. Emails are compared as ``emails`` says.
3. No stored name, description or email contains a token, in any letter case, encoded or in full-width letters, because
   it would be shown to others. The error names the field and repeats nothing.
"""

from __future__ import annotations

import base64
import re
import secrets
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

from proxy.core.errors import Invalid
from proxy.core.permissions import PermissionSet, PermissionSyntaxError
from proxy.core.token import ALPHABET, ID_LENGTH
from proxy.observe.logs import without_tokens
from proxy.services import emails

_USER_ID: Final = re.compile(r"usr_[0-9A-Za-z]{12}", re.ASCII)
_ORG_ID: Final = re.compile(r"org_[0-9A-Za-z]{12}", re.ASCII)
_ORG_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_ROLE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_BASE64: Final = re.compile(r"[0-9A-Za-z+/_-]{60,}", re.ASCII)
"""Long enough for a token in base64."""
EMAIL_LENGTH: Final = emails.LENGTH
NAME_LENGTH: Final = 200
DESCRIPTION_LENGTH: Final = 2000


def new_user_id() -> str:
    """A random id for a user."""
    return "usr_" + _random()


def new_org_id() -> str:
    """A random id for an organisation."""
    return "org_" + _random()


def new_invitation_id() -> str:
    """A random id for an invitation."""
    return "inv_" + _random()


def is_user_id(text: str) -> bool:
    """Whether ``text`` has the form of a user's id."""
    return _USER_ID.fullmatch(text) is not None


def is_org_id(text: str) -> bool:
    """Whether ``text`` has the form of an organisation's id."""
    return _ORG_ID.fullmatch(text) is not None


def email(text: str) -> str:
    """The email as it is stored. Raises Invalid."""
    refuse_tokens(text, "email")
    return emails.stored(text)


def email_key(text: str) -> str:
    """The form in which emails are compared: those that differ only in case, width or encoding are equal."""
    return emails.key(text)


def refuse_tokens(text: str, field: str) -> None:
    """Raise Invalid if a text that is to be stored contains a token."""
    if holds_token(text):
        raise Invalid(field, "must not contain a token: it would be stored and shown to others")


def holds_token(text: str) -> bool:
    """Whether the redactor finds a token in ``text``: as given, in NFKC, or decoded from base64."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    if without_tokens(plain) != plain:
        return True
    return any(without_tokens(decoded) != decoded for run in _BASE64.findall(plain) for decoded in _decoded(run))


def _decoded(run: str) -> Iterator[str]:
    """Decode a run of base64 characters at each of the four offsets where the encoded text may begin."""
    run = run.replace("-", "+").replace("_", "/")
    for begin in range(4):
        yield base64.b64decode(run[begin : begin + (len(run) - begin) // 4 * 4]).decode("latin-1")


def org_name(text: str) -> str:
    """The organisation's name, unchanged. Raises Invalid."""
    if _ORG_NAME.fullmatch(text) is None:
        raise Invalid("name", "an organisation's name is 1 to 63 of a-z, 0-9 and -, not beginning with -")
    return text


def role_name(text: str) -> str:
    """The role's name, unchanged. Raises Invalid."""
    refuse_tokens(text, "name")
    if _ROLE_NAME.fullmatch(text) is None:
        raise Invalid(
            "name", "a role's name is 1 to 128 letters, digits, '.', '_' and '-', beginning with one of the first two"
        )
    return text


def title(text: str, field: str, *, required: bool = True) -> str:
    """A display name on one line, stripped. Raises Invalid for ``field``."""
    refuse_tokens(text, field)
    stripped = text.strip()
    if required and not stripped:
        raise Invalid(field, "a name is needed")
    if len(stripped) > NAME_LENGTH or not stripped.isprintable():
        raise Invalid(field, f"at most {NAME_LENGTH} printable characters on one line")
    return stripped


def description(text: str) -> str:
    """The description, unchanged: free text of several lines. Raises Invalid."""
    refuse_tokens(text, "description")
    if len(text) > DESCRIPTION_LENGTH or not all(char.isprintable() or char in "\n\t" for char in text):
        raise Invalid("description", f"at most {DESCRIPTION_LENGTH} printable characters")
    return text


def _random() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))


def permission_texts(texts: Iterable[str], field: str) -> list[str]:
    """Permissions in canonical form, sorted, without repeats. Raises Invalid with the field and position."""
    checked = list(texts)
    for position, text in enumerate(checked):
        refuse_tokens(text, f"{field}[{position}]")
        try:
            PermissionSet.of((text,))
        except PermissionSyntaxError as error:
            raise Invalid(f"{field}[{position}]", str(error)) from None
    return list(PermissionSet.of(checked).texts)
