"""Reading a certificate's validity period, which OpenSSL does not check when it loads the certificate."""

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_TIMES: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""UTCTime and GeneralizedTime as in RFC 5280 section 4.1.2.5. Python's %y begins with 1969 and the RFC with 1950, but
no certificate is from the years between."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validity:
    """A validity period; both ends are inclusive."""

    begins: datetime
    ends: datetime


def validity(path: Path) -> Validity | None:
    """The validity of the first certificate in a PEM file, which is the server's own; None if it cannot be read."""
    try:
        first = _PEM.search(path.read_text("ascii"))
        if first is None:
            return None
        certificate = ssl.PEM_cert_to_DER_cert(first[0])
        # RFC 5280 section 4.1: Certificate, TBSCertificate; version (optional), serial number, signature, issuer.
        tag, value, _ = _element(_element(certificate)[1])
        fields = list(_elements(value))
        if tag != _SEQUENCE:
            return None
        place = 4 if fields[0][0] == _VERSION else 3
        begins, ends = (_time(*each) for each in _elements(fields[place][1]))
    except (OSError, ValueError, IndexError):
        return None
    return Validity(begins=begins, ends=ends)


def _time(tag: int, value: bytes) -> datetime:
    form = _TIMES.get(tag)
    if form is None:
        raise ValueError("not a time")
    return datetime.strptime(value.decode("ascii"), form).replace(tzinfo=UTC)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        tag, value, data = _element(data)
        yield tag, value


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """The first element's tag and value, and the data after it (X.690 section 8.1). Raises IndexError, ValueError."""
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    end = start + length
    if end > len(data):
        raise ValueError("an element is cut off")
    return data[0], data[start:end], data[end:]
