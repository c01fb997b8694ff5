"""Names that people give and ids that we make, and how to tell them apart.

1. An id is ``usr_`` or ``org_`` and 12 base62 characters from the system's CSPRNG. An email has an ``@`` and an
   organisation's name has no ``_``, so a reference is never both an id and a name.
2. Emails are compared without regard to case; the domain is stored in lower case, the rest as given.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from typing import Final

from proxy.core.errors import Invalid
from proxy.core.token import ALPHABET, ID_LENGTH

_USER_ID: Final = re.compile(r"usr_[0-9A-Za-z]{12}", re.ASCII)
_ORG_ID: Final = re.compile(r"org_[0-9A-Za-z]{12}", re.ASCII)
_ORG_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_ROLE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_EMAIL: Final = re.compile(r"[^@\s<>(),;:\\\"\[\]]{1,64}@[^@\s<>(),;:\\\"\[\]]{1,253}")
EMAIL_LENGTH: Final = 320
NAME_LENGTH: Final = 200
DESCRIPTION_LENGTH: Final = 2000


def new_user_id() -> str:
    return "usr_" + _random()


def new_org_id() -> str:
    return "org_" + _random()


def new_invitation_id() -> str:
    return "inv_" + _random()


def is_user_id(text: str) -> bool:
    return _USER_ID.fullmatch(text) is not None


def is_org_id(text: str) -> bool:
    return _ORG_ID.fullmatch(text) is not None


def email(text: str) -> str:
    """The email as it is stored. Raises Invalid."""
    stripped = text.strip()
    if len(stripped) > EMAIL_LENGTH or not stripped.isprintable() or _EMAIL.fullmatch(stripped) is None:
        raise Invalid("email", "an email is name@domain, without spaces")
    local, _, domain = stripped.rpartition("@")
    if domain.startswith((".", "-")) or domain.endswith((".", "-")) or ".." in domain:
        raise Invalid("email", "the domain is empty between two dots or at an end")
    return f"{local}@{domain.lower()}"


def email_key(text: str) -> str:
    """The form in which emails are compared: two that differ in case only are one."""
    return unicodedata.normalize("NFC", text.strip()).casefold()


def org_name(text: str) -> str:
    """The name itself. Raises Invalid."""
    if _ORG_NAME.fullmatch(text) is None:
        raise Invalid("name", "an organisation's name is 1 to 63 of a-z, 0-9 and -, not beginning with -")
    return text


def role_name(text: str) -> str:
    """The name itself. Raises Invalid."""
    if _ROLE_NAME.fullmatch(text) is None:
        raise Invalid(
            "name", "a role's name is 1 to 128 letters, digits, '.', '_' and '-', beginning with one of the first two"
        )
    return text


def title(text: str, field: str, *, required: bool = True) -> str:
    """A name for people on one line, stripped. Raises Invalid naming ``field``."""
    stripped = text.strip()
    if required and not stripped:
        raise Invalid(field, "a name is needed")
    if len(stripped) > NAME_LENGTH or not stripped.isprintable():
        raise Invalid(field, f"at most {NAME_LENGTH} printable characters on one line")
    return stripped


def description(text: str) -> str:
    """Free text of a few lines. Raises Invalid."""
    if len(text) > DESCRIPTION_LENGTH or not all(char.isprintable() or char in "\n\t" for char in text):
        raise Invalid("description", f"at most {DESCRIPTION_LENGTH} printable characters")
    return text


def _random() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))
