r"""Permissions and permission sets: ``entity:operation`` and ``entity/id:operation``, with ``*`` as the wildcard.

1. In a permission's text, ``*`` alone means any entity, id or operation. In memory the wildcard is None, so that a
   ``*`` in a request is an ordinary name and never equals a wildcard.
2. ``entity:operation`` means ``entity/*:operation``: every id, and the operations without an id (list, create).
3. A set allows what one of its entries allows; entries are never combined. What no entry allows is refused.
4. Names match exactly: case counts, and there is no prefix or suffix matching.
5. The text of a permission is an RFC 6749 §3.3 scope token: visible ASCII without space, ``"`` and ``\``. Other
   characters of a name, and ``*``, ``%`` and the separators where they would be ambiguous, are percent-encoded as
   UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakValueDictionary

WILD: Final = "*"
MAX_TEXT: Final = 512

_TEXT: Final = re.compile(r"(?:[!#$&-\[\]-~]|%[0-9A-Fa-f]{2})+", re.ASCII)
_ESCAPES: Final = re.compile(r"(?:%[0-9A-Fa-f]{2})+", re.ASCII)
_NAME_UNSAFE: Final = re.compile(r"[^!#$&-)+-.0-9;-\[\]-~]")
_ID_UNSAFE: Final = re.compile(r"[^!#$&-)+-\[\]-~]")
_OPERATION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


Key = tuple[str | None, str | None, str | None]
"""Entity, id and operation of an entry; None is the wildcard."""


class PermissionSyntaxError(ValueError):
    """A text is not a permission; the message says why without repeating the text."""


def valid_operation(name: str) -> bool:
    """Whether ``name`` is valid as an operation of a route: 1 to 64 letters, digits, ``.``, ``_``, ``-``."""
    return _OPERATION.fullmatch(name) is not None


@dataclass(frozen=True, slots=True, order=False)
class Permission:
    """One entry of a set. None is the wildcard; an ``entity_id`` of None also allows operations without an id."""

    entity: str | None
    entity_id: str | None
    operation: str | None

    @classmethod
    def parse(cls, text: str) -> Permission:
        """Parse ``entity:operation`` or ``entity/id:operation``; raises PermissionSyntaxError."""
        if len(text) > MAX_TEXT:
            raise PermissionSyntaxError(f"a permission is at most {MAX_TEXT} characters")
        if _TEXT.fullmatch(text) is None:
            raise PermissionSyntaxError(
                "a permission is visible ASCII without spaces, quotes and backslashes; percent-encode other characters"
            )
        thing, colon, operation = text.rpartition(":")
        if not colon:
            raise PermissionSyntaxError("a permission is entity:operation or entity/id:operation; the colon is missing")
        entity, slash, entity_id = thing.partition("/")
        if ":" in entity:
            raise PermissionSyntaxError("an entity's name must not contain a colon")
        if "/" in operation:
            raise PermissionSyntaxError("an operation's name must not contain a slash")
        return cls(_name(entity, "entity"), _name(entity_id, "id") if slash else None, _name(operation, "operation"))

    @staticmethod
    def canonical(text: str) -> str:
        """The canonical form of a permission's text, for a valid text.

        Only texts with escapes or an id of ``*`` have more than one form; these are parsed, which raises
        PermissionSyntaxError for an invalid one.
        """
        return text if "%" not in text and "/*:" not in text else str(Permission.parse(text))

    def __str__(self) -> str:
        entity = WILD if self.entity is None else _NAME_UNSAFE.sub(_encode, self.entity)
        operation = WILD if self.operation is None else _NAME_UNSAFE.sub(_encode, self.operation)
        if self.entity_id is None:
            return f"{entity}:{operation}"
        return f"{entity}/{_ID_UNSAFE.sub(_encode, self.entity_id)}:{operation}"

    def allows(self, entity: str, entity_id: str | None, operation: str) -> bool:
        """Whether this entry allows the operation; ``PermissionSet.allows`` is the faster form for a set."""
        return (
            (self.entity is None or self.entity == entity)
            and (self.entity_id is None or self.entity_id == entity_id)
            and (self.operation is None or self.operation == operation)
        )

    def covers(self, other: Permission) -> bool:
        """Whether this entry allows everything that ``other`` allows."""
        return (
            (self.entity is None or self.entity == other.entity)
            and (self.entity_id is None or self.entity_id == other.entity_id)
            and (self.operation is None or self.operation == other.operation)
        )

    @property
    def key(self) -> Key:
        """Entity, id and operation as a tuple."""
        return self.entity, self.entity_id, self.operation

    def wider(self) -> tuple[Key, ...]:
        """The keys of all entries that cover this one: eight, not necessarily distinct.

        Looking these up in a set stays fast where comparing a thousand entries with a thousand others would block the
        event loop for seconds.
        """
        entity, entity_id, operation = self.entity, self.entity_id, self.operation
        return (
            (entity, entity_id, operation),
            (entity, entity_id, None),
            (entity, None, operation),
            (entity, None, None),
            (None, entity_id, operation),
            (None, entity_id, None),
            (None, None, operation),
            (None, None, None),
        )


def _name(text: str, what: str) -> str | None:
    if text == WILD:
        return None
    if not text:
        raise PermissionSyntaxError(f"the {what} is empty")
    if WILD in text:
        raise PermissionSyntaxError(f"the {what} has * beside other characters; use * alone, or write %2A")
    if "%" not in text:
        return text
    try:
        return _ESCAPES.sub(lambda found: bytes.fromhex(found[0].replace("%", "")).decode(), text)
    except UnicodeDecodeError:
        raise PermissionSyntaxError(f"the {what} has percent-encoded bytes that are not UTF-8") from None


def _encode(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))


_Operations = frozenset[str] | None
"""Allowed operations; None is all."""

_NOTHING: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """Allowed operations by entity; ``rest`` holds for every entity.

    ``rest`` is not merged into ``by_entity``: that would repeat it for each entity.
    """

    by_entity: dict[str, _Operations]
    rest: _Operations


def _table(entries: Iterable[Permission]) -> _Table:
    rest: list[Permission] = []
    named: dict[str, list[Permission]] = {}
    for entry in entries:
        (rest if entry.entity is None else named.setdefault(entry.entity, [])).append(entry)
    return _Table(by_entity={name: _operations(own) for name, own in named.items()}, rest=_operations(rest))


def _operations(entries: Iterable[Permission]) -> _Operations:
    names: set[str] = set()
    for entry in entries:
        if entry.operation is None:
            return None
        names.add(entry.operation)
    return frozenset(names)


@dataclass(frozen=True, kw_only=True, slots=True, weakref_slot=True, eq=False, repr=False)
class PermissionSet:
    """A set of permissions, compiled for lookup. Equal sets are one object (``of``), which thousands of grants share.

    ``entries`` and ``texts`` are sorted by text; ``text`` joins them with spaces (an RFC 6749 scope value).
    """

    entries: tuple[Permission, ...]
    texts: tuple[str, ...]
    text: str
    _by_entity: dict[str, _Operations] = field(repr=False)
    _rest: _Operations = field(repr=False)
    _by_id: dict[str, _Table] | None = field(repr=False)
    _held: frozenset[Key] = field(repr=False)

    @classmethod
    def of(cls, texts: Iterable[str]) -> PermissionSet:
        """The set of these permissions; equal sets give the same object. Raises PermissionSyntaxError."""
        spelt = frozenset(texts)
        known = _known.get(spelt)
        if known is not None:
            return known
        by_text = {str(entry): entry for entry in map(Permission.parse, spelt)}
        canonical = frozenset(by_text)
        made = _known.get(canonical)
        if made is None:
            made = cls._build(by_text)
            _known[canonical] = made
        _known[spelt] = made
        return made

    @classmethod
    def _build(cls, by_text: dict[str, Permission]) -> PermissionSet:
        ordered = tuple(sorted(by_text))
        entries = tuple(by_text[text] for text in ordered)
        general = _table(entry for entry in entries if entry.entity_id is None)
        exact: dict[str, list[Permission]] = {}
        for entry in entries:
            if entry.entity_id is not None:
                exact.setdefault(entry.entity_id, []).append(entry)
        by_id = {entity_id: _table(own) for entity_id, own in exact.items()}
        return cls(
            entries=entries,
            texts=ordered,
            text=" ".join(ordered),
            _by_entity=general.by_entity,
            _rest=general.rest,
            _by_id=by_id or None,
            _held=frozenset(entry.key for entry in entries),
        )

    def allows(self, entity: str, entity_id: str | None, operation: str) -> bool:
        """Whether an entry allows this operation; without an id, only entries for every id do.

        On the hot path: dict lookups only.
        """
        operations = self._by_entity.get(entity, _NOTHING)
        if operations is None or operation in operations:
            return True
        if self._rest is None or operation in self._rest:
            return True
        if entity_id is None or self._by_id is None:
            return False
        table = self._by_id.get(entity_id)
        if table is None:
            return False
        operations = table.by_entity.get(entity, _NOTHING)
        return operations is None or operation in operations or table.rest is None or operation in table.rest

    def entry_for(self, entity: str, entity_id: str | None, operation: str) -> Permission | None:
        """The most specific entry that allows this operation, or None."""
        fitting = [entry for entry in self.entries if entry.allows(entity, entity_id, operation)]
        return min(fitting, key=_width, default=None)

    def covers(self, other: PermissionSet) -> bool:
        """Whether this set allows everything that ``other`` allows.

        Comparing single entries is exact, because any name is possible: a wildcard of an entry of ``other`` also stands
        for a name that no entry mentions, and only a wildcard in the same place allows that name.
        """
        return all(not self._held.isdisjoint(entry.wider()) for entry in other.entries)

    def covering(self, text: str) -> list[str]:
        """The entries that cover this permission, as sorted texts. Raises PermissionSyntaxError."""
        found = self._held.intersection(Permission.parse(text).wider())
        return sorted(str(Permission(*key)) for key in found)

    def __contains__(self, text: object) -> bool:
        return text in self.texts

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[Permission]:
        return iter(self.entries)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, PermissionSet) and self.texts == other.texts)

    def __hash__(self) -> int:
        return hash(self.texts)

    def __repr__(self) -> str:
        return f"PermissionSet({self.text!r})"


def _width(entry: Permission) -> tuple[int, str]:
    return sum(part is None for part in (entry.entity, entry.entity_id, entry.operation)), str(entry)


_known: Final[WeakValueDictionary[frozenset[str], PermissionSet]] = WeakValueDictionary()
