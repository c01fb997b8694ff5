"""Scalar types of the configuration: durations, sizes, status ranges, and quoting of values in messages.

Durations become float seconds, sizes int bytes. Every parser raises ``ValueError`` with one sentence for the operator.
It also accepts its own result, so that settings can be written to JSON and read back.
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, Strict, WithJsonSchema

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION: Final = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,6})?(?:ms|s|m|h|d|w))+")
_DURATION_PART: Final = re.compile(r"([0-9.]+)([a-z]+)")
_BYTES: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE: Final = re.compile(r"([0-9]{1,15}) ?([KMG]i?B|B)?")
_STATUSES: Final = re.compile(r"([1-5][0-9]{2})(?:\.\.([1-5][0-9]{2}))?")
_ECHO_LIMIT: Final = 40


def quoted(value: object) -> str:
    """A value for a message: in double quotes, escaped to plain ASCII and cut to 40 characters.

    Never call it with a value that may be a secret.
    """
    text = value if isinstance(value, str) else str(value)
    safe = text[:_ECHO_LIMIT].encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{safe}{"…" if len(text) > _ECHO_LIMIT else ""}"'


def quoted_path(path: object) -> str:
    """A file path for a message: in double quotes, escaped to plain ASCII, never cut."""
    return '"' + str(path).encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'


def parse_duration(value: object) -> float:
    """``"500ms"``, ``"2s"``, ``"1h30m"``, ``"30d"`` or a number of seconds → seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value) or value < 0:
            raise ValueError("must be a duration such as 500ms, 2s, 5m or 30d")
        return float(value)
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError("must be a duration such as 500ms, 2s, 5m or 30d")
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(value))


def parse_size(value: object) -> int:
    """``"32KiB"``, ``"10MB"`` or a number of bytes → bytes."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    matched = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if matched is None:
        raise ValueError("must be a size such as 512, 32KiB, 10MiB or 1GB")
    return int(matched[1]) * _BYTES[matched[2] or ""]


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusRange:
    """HTTP statuses from ``first`` to ``last``, both included: ``200`` or ``200..399``."""

    first: int
    last: int

    def __contains__(self, status: object) -> bool:
        return isinstance(status, int) and self.first <= status <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}..{self.last}"


def parse_statuses(value: object) -> StatusRange:
    """``200``, ``"200"`` or ``"200..399"`` → statuses, from 200 on: interim statuses are no response."""
    if isinstance(value, StatusRange):
        return value
    plain = isinstance(value, (int, str)) and not isinstance(value, bool)
    matched = _STATUSES.fullmatch(str(value)) if plain else None
    if matched is None or not 200 <= int(matched[1]) <= int(matched[2] or matched[1]):
        raise ValueError("must be a status such as 200, or statuses such as 200..399")
    return StatusRange(first=int(matched[1]), last=int(matched[2] or matched[1]))


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": f"^{_DURATION.pattern}$"}, {"type": "number", "minimum": 0}]}
    ),
]
"""Seconds; in a file a number with a unit."""

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": f"^{_SIZE.pattern}$"}, {"type": "integer", "minimum": 0}]}),
]
"""Bytes; in a file a number, with or without a unit."""

Statuses = Annotated[
    StatusRange,
    PlainValidator(parse_statuses),
    PlainSerializer(str, return_type=str),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": f"^{_STATUSES.pattern}$"}, {"type": "integer", "minimum": 200}]}
    ),
]
"""HTTP statuses; in a file one status, or the first and the last of a range."""

Whole = Annotated[int, Strict()]
"""A whole number; ``"2"`` and ``true`` are errors."""
