"""Conditions of routes on the query: reads single parameters, or finds that their reading is ambiguous.

A route with ``query`` conditions matches only requests whose parameters have exactly these values. Backends split and
decode a query in many ways, so a condition is decided only where all of them agree (docs/threat-model.md §1):

1. A parameter that a condition names occurs at most once, in exactly this spelling, separated by ``&``. Its value is
   plain: letters, digits and ``-._~``. Without ``=`` its value is empty. A condition ``*`` is met by every value.
2. Another spelling of the name makes the reading ambiguous: another letter case, escapes, ``+`` or white space around
   it, other punctuation, ``[]`` after it or around it, a compatible Unicode character. So does a name after ``;``,
   ``?`` or an escaped separator, however often the query is decoded, because some parsers split there. A parameter
   that a condition names is also ambiguous beside any ``?``: some parsers read only what follows the last one.
3. A value that is equal to that of the condition only in another spelling makes the reading ambiguous.
4. A name with control characters or bytes that are not UTF-8 makes every reading ambiguous. So do more than
   ``_MOST_PARAMETERS``, because some parsers ignore those behind the thousandth.
5. Other parameters have no effect. No function here raises.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from urllib.parse import unquote_to_bytes

Conditions = tuple[tuple[bytes, bytes], ...]
"""The name and value of each parameter; all of them must be met."""

ANY: Final = "*"
"""A condition that every value of the parameter meets."""

PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]*+", re.ASCII)
"""The characters of a name or value in a condition: none has a reason to be escaped (RFC 3986 section 2.3)."""

_ANY_VALUE: Final = ANY.encode("ascii")
_PLAIN_VALUE: Final = re.compile(rb"[A-Za-z0-9._~-]*+")
_SEPARATOR: Final = re.compile(r"[&;?]")
_ODD: Final = re.compile("[\x00-\x1f\x7f-\x9f\ufffd]")
_PUNCTUATION: Final = re.compile(r"[^\w]|_")
_MOST_DECODINGS: Final = 4
_MOST_PARAMETERS: Final = 256


class QueryReading:
    """The parameters of one query (``?…``, or empty), read strictly and in every other way that rules 2 and 4 name."""

    __slots__ = ("_counts", "_odd", "_question", "_values")

    def __init__(self, query: bytes) -> None:
        query = query[1:]
        self._values: dict[bytes, list[bytes]] = {}
        for parameter in query.split(b"&"):
            name, _, value = parameter.partition(b"=")
            self._values.setdefault(name, []).append(value)
        self._counts: dict[str, int] = {}
        self._odd = False
        self._question = False
        decoded = query
        for _ in range(_MOST_DECODINGS):
            self._count(decoded)
            query, decoded = decoded, unquote_to_bytes(decoded)
            if query == decoded:
                return
        self._odd = True

    def _count(self, query: bytes) -> None:
        """Count the parameters of one decoding by their folded names; the largest count of all decodings is kept."""
        counts: dict[str, int] = {}
        text = _folded(query.replace(b"+", b" ").decode("utf-8", "replace"))
        self._question = self._question or "?" in text
        parameters = _SEPARATOR.split(text)
        if len(parameters) > _MOST_PARAMETERS:
            self._odd = True
            return
        for parameter in parameters:
            name = parameter.partition("=")[0]
            if _ODD.search(name) is not None:
                self._odd = True
            for each in _spelled(name):
                counts[each] = counts.get(each, 0) + 1
        for name, count in counts.items():
            if count > self._counts.get(name, 0):
                self._counts[name] = count

    def meets(self, conditions: Conditions) -> bool | None:
        """Whether every condition is met; None if the reading of a parameter that they name is ambiguous."""
        if self._odd:
            return None
        met = True
        for name, wanted in conditions:
            values = self._values.get(name, [])
            if len(values) > 1 or len(values) != self._counts.get(_name(name), 0):
                return None
            if values and self._question:
                return None
            if not values:
                met = False
            elif wanted != _ANY_VALUE and values[0] != wanted:
                if _PLAIN_VALUE.fullmatch(values[0]) is None or _name(values[0]) == _name(wanted):
                    return None
                met = False
        return met


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _spelled(name: str) -> set[str]:
    """The names that parsers make of a folded one: PHP and qs read brackets in different ways."""
    before, bracket, after = name.partition("[")
    names = {_hyphened(before)}
    if bracket:
        if not before.strip():
            # qs, which Express uses: ``[a]`` is ``a``.
            names.add(_hyphened(after.lstrip("[").partition("]")[0].partition("[")[0]))
        if "]" not in after:
            # PHP: a bracket that is not closed becomes "_".
            names.add(_hyphened(name))
    return names


def _hyphened(text: str) -> str:
    return _PUNCTUATION.sub("-", text).strip("-")


def _name(text: bytes) -> str:
    """A plain name or value in the form in which names are compared."""
    return _hyphened(text.decode("ascii").casefold())
