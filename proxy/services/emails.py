"""Email addresses: validates them, and converts them to the stored form and to the form for comparison.

1. Stored: in NFKC, without surrounding spaces, the domain in lower case; the rest as given.
2. Compared (``key``): the local part in NFKC and case-folded, the domain in ASCII (IDNA 2008 after the mapping of
   UTS 46), so ``Admin@BÜCHER.example`` is ``admin@xn--bcher-kva.example``.
3. A domain label that is ASCII and not encoded is only lower-cased: names with ``_`` exist, but are not valid IDNA.
4. A domain that IDNA refuses is refused in an address to be stored. In a lookup it is only case-folded, so no user
   matches.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from typing import Final

from proxy.core.errors import Invalid

LENGTH: Final = 320
"""Characters of an address and of its key: the size of the store's columns."""
_DOMAIN_LENGTH: Final = 253
_ADDRESS: Final = re.compile(r"[^@\s<>(),;:\\\"\[\]]{1,64}@[^@\s<>(),;:\\\"\[\]]{1,253}")
_DOTS: Final = re.compile("[.\u3002\uff0e\uff61]")
_ENCODED: Final = "xn--"


def stored(text: str) -> str:
    """The address in its stored form. Raises Invalid."""
    address = unicodedata.normalize("NFKC", text).strip()
    if len(text) > LENGTH or not address.isprintable() or _ADDRESS.fullmatch(address) is None:
        raise Invalid("email", "an email is name@domain, without spaces")
    local, _, domain = address.rpartition("@")
    domain = ".".join(_DOTS.split(domain)).lower()
    if domain.startswith((".", "-")) or domain.endswith((".", "-")) or ".." in domain:
        raise Invalid("email", "the domain is empty between two dots or at an end")
    try:
        encoded = _ascii(domain)
    except UnicodeError:
        raise Invalid("email", "the domain is not a valid domain name (IDNA 2008)") from None
    address = f"{local}@{domain}"
    if len(encoded) > _DOMAIN_LENGTH or max(len(address), len(key(address))) > LENGTH:
        raise Invalid("email", f"at most {LENGTH} characters, and {_DOMAIN_LENGTH} of the domain in ASCII")
    return address


def key(text: str) -> str:
    """The form for comparison; a text that is not an address is only case-folded."""
    folded = _folded(text)
    local, at, domain = folded.rpartition("@")
    if not at:
        return folded
    with contextlib.suppress(UnicodeError):
        # Not from ``folded``: case folding maps some letters to others that form different domain names.
        domain = _ascii(unicodedata.normalize("NFKC", text).strip().rpartition("@")[2].lower())
    return f"{local}@{domain}"


def readable(address: str) -> str:
    """The address with the encoded labels of its domain decoded to Unicode."""
    local, at, domain = address.rpartition("@")
    if _ENCODED not in domain.lower():
        return address
    import idna

    labels = []
    for label in domain.split("."):
        try:
            labels.append(idna.ulabel(label))
        except UnicodeError:
            labels.append(label)
    return f"{local}{at}{'.'.join(labels)}"


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).strip().casefold())


def _ascii(domain: str) -> str:
    """A lower-case domain in ASCII. Raises UnicodeError, the base class of IDNA's errors."""
    if domain.isascii() and _ENCODED not in domain:
        return domain
    # Imported here: its tables load slowly, and most domains do not need them.
    import idna

    mapped = idna.uts46_remap(domain, std3_rules=False, transitional=False)
    labels = []
    for label in _DOTS.split(mapped):
        if not label.isascii():
            labels.append(idna.alabel(label).decode("ascii"))
        elif label.startswith(_ENCODED):
            labels.append(idna.alabel(idna.ulabel(label)).decode("ascii"))
        else:
            labels.append(label)
    return ".".join(labels)
