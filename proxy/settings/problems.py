"""Problems of a configuration: the origin of each value, and one plain sentence for each mistake.

The line of a ``ConfigurationProblem`` is that of the file; for a value from the environment, its path is the variable.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from pydantic_core import ErrorDetails

from proxy.core.errors import ConfigurationProblem
from proxy.settings.values import quoted

Loc: TypeAlias = tuple[str | int, ...]
"""The path from the root of the configuration to a value: ``("routes", 3, "upstream")``."""

_PLAIN: Final = re.compile(r"[0-9A-Za-z_-]+")
_CREDENTIAL: Final = re.compile(r"(?i)\b(?:authorization|x-api-key|cookie)$")
"""Names that the log's redactor, which is above this room, takes for a header with a secret if a colon follows."""
_SECRET: Final = frozenset({"secret_key", "store", "store_session", "store_password"})
"""Top-level settings that may hold a secret, so that messages never contain their value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueOrigin:
    """The origin of a value: a line of the file, or an environment variable."""

    line: int | None = None
    variable: str | None = None


@dataclass(kw_only=True, slots=True)
class ValueOrigins:
    """The origins of all values and keys of a configuration."""

    values: dict[Loc, ValueOrigin] = field(default_factory=dict)
    keys: dict[Loc, ValueOrigin] = field(default_factory=dict)

    def of(self, loc: Loc, *, key: bool = False) -> ValueOrigin:
        """The origin of the value (or, with ``key``, of its name), or of the nearest section around it."""
        if key and loc in self.keys:
            return self.keys[loc]
        for length in range(len(loc), -1, -1):
            if (origin := self.values.get(loc[:length])) is not None:
                return origin
        return ValueOrigin()

    def override(self, loc: Loc, variable: str) -> None:
        """Record that this value, with everything below it, comes from an environment variable."""
        for marks in (self.values, self.keys):
            for below in [known for known in marks if known[: len(loc)] == loc]:
                del marks[below]
        origin = ValueOrigin(variable=variable)
        self.values[loc] = self.keys[loc] = origin
        # Sections that are not in the file also come from this variable.
        for length in range(1, len(loc)):
            self.values.setdefault(loc[:length], origin)
            self.keys.setdefault(loc[:length], origin)

    def problem(self, loc: Loc, message: str, *, key: bool = False) -> ConfigurationProblem:
        """A problem of the value (or, with ``key``, of its name), with its origin."""
        origin = self.of(loc, key=key)
        if origin.variable is None:
            return ConfigurationProblem(path=path_of(loc), line=origin.line, message=message)
        below = "" if self.values.get(loc) == origin else f"{path_of(loc)}: "
        return ConfigurationProblem(path=origin.variable, line=None, message=below + message)


def path_of(loc: Loc) -> str:
    """``("routes", 3, "upstream")`` → ``routes[3].upstream``; a name with other characters is quoted.

    So is the name of a credential header: in a line of the log, the word after ``Authorization:`` would be redacted.
    """
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN.fullmatch(part) is not None and len(part) <= 64 and _CREDENTIAL.search(part) is None:
            text += f".{part}" if text else part
        else:
            text += f"[{quoted(part)}]"
    return text


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """``; did you mean "upstream"?``, or nothing if no known name is similar."""
    near = difflib.get_close_matches(wrong.lower().replace("-", "_"), sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {quoted(near[0])}?" if near else ""


def one_of(words: Iterable[str]) -> str:
    """``a, b or c``."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def sentence(error: ErrorDetails, loc: Loc, siblings: Iterable[str]) -> str:
    """One of pydantic's errors as a plain sentence.

    ``siblings`` are the valid names in the section of the error, for a suggestion.
    """
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        name = str(loc[-1])
        return f"unknown setting {quoted(name)}{suggestion(name, siblings)}"
    if kind == "missing":
        return "is required here, but missing"
    if kind in ("literal_error", "enum"):
        allowed = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        given = error["input"]
        hint = suggestion(given, allowed) if isinstance(given, str) else ""
        return f"must be {one_of(allowed)}{_given(given, loc)}{hint}"
    if kind in _BOUNDS:
        bound = next(iter(context.values()))
        return f"{_BOUNDS[kind]} {bound:g}{' seconds' if isinstance(bound, float) else ''}"
    if kind == "too_short":
        return "must not be empty"
    wanted = _WANTED.get(kind)
    return f"must be {wanted}{_given(error['input'], loc)}" if wanted else error["msg"].lower()


_BOUNDS: Final[Mapping[str, str]] = {
    "greater_than_equal": "must be at least",
    "less_than_equal": "must be at most",
    "greater_than": "must be more than",
    "less_than": "must be less than",
}

_MAPPING: Final = 'a section of "name: value" lines'
_WANTED: Final[Mapping[str, str]] = {
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "dict_type": _MAPPING,
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "text",
    "string_sub_type": "text",
    "path_type": "a file path",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}


def _given(value: object, loc: Loc) -> str:
    """``, not "abc"``: the given value. Secrets and whole sections are not repeated."""
    if value is None:
        return ", but is empty"
    if isinstance(value, dict):
        return ", not a section"
    if isinstance(value, (list, tuple)):
        return ", not a list"
    if loc and (loc[0] in _SECRET or "set_headers" in loc):
        return ""
    return f", not {str(value).lower()}" if isinstance(value, bool) else f", not {quoted(value)}"
