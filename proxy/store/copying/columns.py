"""What is copied, and whether PostgreSQL takes a value that SQLite has: SQLite checks neither lengths nor texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from proxy.store import tables

OF_NODES: Final = frozenset({"nodes", "acknowledgements", "chores", "writers"})
"""Tables about running nodes: a store that is moved has none."""
COPIED: Final = tuple(table for table in tables.metadata.sorted_tables if table.name not in OF_NODES)
"""The tables, each after those that it refers to."""

_INT4, _INT8 = 2**31, 2**63


class Text(bytes):
    """A text as SQLite stores it, apart from its blobs."""


class Unfit(ValueError):
    """PostgreSQL does not take a value; the message continues "column NAME …" and repeats no value."""


Fit = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Misfit:
    """A value that PostgreSQL does not take. ``row`` is SQLite's rowid."""

    table: str
    row: int
    column: str
    problem: str

    def __str__(self) -> str:
        return f"{self.table} row {self.row}: {self.column} {self.problem}"


def fits(table: sa.Table) -> list[Fit]:
    """For each column what turns a value of SQLite into one for PostgreSQL. They raise Unfit."""
    return [_fit(column) for column in table.columns]


def _fit(column: sa.Column[Any]) -> Fit:
    fit = _of_type(column.type)
    nullable = bool(column.nullable)

    def checked(value: Any) -> Any:
        if value is None:
            if not nullable:
                raise Unfit("has no value")
            return None
        return fit(value)

    return checked


def _of_type(kind: sa.types.TypeEngine[Any]) -> Fit:
    if isinstance(kind, sa.JSON):
        return _json
    if isinstance(kind, sa.String):
        return _text(kind.length)
    if isinstance(kind, sa.LargeBinary):
        return _exactly(bytes)
    if isinstance(kind, sa.Float):
        return _exactly(float)
    if isinstance(kind, sa.Integer):
        return _number(_INT8 if isinstance(kind, sa.BigInteger) else _INT4)
    raise TypeError(f"no rule for columns of the type {kind!r}")


def _text(length: int | None) -> Fit:
    def fit(value: Any) -> str:
        text = _decoded(value)
        if length is not None and len(text) > length:
            raise Unfit(f"has {len(text)} characters, more than the {length} that PostgreSQL takes")
        return text

    return fit


def _decoded(value: Any) -> str:
    if type(value) is not Text:
        raise Unfit("is not a text")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise Unfit("is not valid UTF-8, as with a lone surrogate") from None
    if "\0" in text:
        raise Unfit("contains a NUL character")
    return text


def _json(value: Any) -> str:
    text = _decoded(value)
    try:
        json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        raise Unfit("is not valid JSON") from None
    return text


def _not_json(_name: str) -> None:
    raise ValueError


def _exactly(kind: type) -> Fit:
    word = {bytes: "a blob", float: "a number with a fraction"}[kind]

    def fit(value: Any) -> Any:
        if type(value) is not kind:
            raise Unfit(f"is not {word}")
        return value

    return fit


def _number(limit: int) -> Fit:
    def fit(value: Any) -> int:
        if type(value) is not int:
            raise Unfit("is not a whole number")
        if not -limit <= value < limit:
            raise Unfit("is a number that is too large")
        return value

    return fit
