"""The algebra of permissions: ``entity:operation`` and ``entity/id:operation``, with ``*`` for any.

1. In a permission's text ``*`` alone stands for any entity, id or operation. In memory "any" is None, so that a ``*``
   which arrives in a request is a name like every other and never meets a wildcard as its equal.
2. ``entity:operation`` is ``entity/*:operation``: every id, and the operations that have none (list, create).
3. A set allows what one of its entries allows; entries are never combined. Nothing allowed means refused.
4. Names are exact: case counts, no prefix or suffix matching.
5. The text of a permission is an RFC 6749 §3.3 scope token: visible ASCII without space, ``"`` and ``\\``. Other
   characters of a name, and ``*``, ``%`` and the separators where they would mislead, are percent-encoded as UTF-8.
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
"""Entity, id and operation of an entry; None stands for any."""


class PermissionSyntaxError(ValueError):
    """A text that is no permission; the message says what is wrong without repeating it."""


def valid_operation(name: str) -> bool:
    """Whether ``name`` can be an operation of a route: 1 to 64 letters, digits, ``.``, ``_``, ``-``."""
    return _OPERATION.fullmatch(name) is not None


@dataclass(frozen=True, slots=True, order=False)
class Permission:
    """One entry. None stands for any; an ``entity_id`` of None also reaches operations without an id."""

    entity: str | None
    entity_id: str | None
    operation: str | None

    @classmethod
    def parse(cls, text: str) -> Permission:
        """Read ``entity:operation`` or ``entity/id:operation``; raises PermissionSyntaxError."""
        if len(text) > MAX_TEXT:
            raise PermissionSyntaxError(f"a permission is at most {MAX_TEXT} characters")
        if _TEXT.fullmatch(text) is None:
            raise PermissionSyntaxError(
                "a permission is visible ASCII without spaces, quotes and backslashes; percent-encode other characters"
            )
        thing, colon, operation = text.rpartition(":")
        if not colon:
            raise PermissionSyntaxError("a permission is entity:operation or entity/id:operation; there is no colon")
        entity, slash, entity_id = thing.partition("/")
        if ":" in entity:
            raise PermissionSyntaxError("an entity's name has no colon")
        if "/" in operation:
            raise PermissionSyntaxError("an operation's name has no slash")
        return cls(_name(entity, "entity"), _name(entity_id, "id") if slash else None, _name(operation, "operation"))

    @staticmethod
    def canonical(text: str) -> str:
        """The one text of the permission that ``text`` spells; raises PermissionSyntaxError where it has to be read.

        Only escapes and an id of ``*`` have two spellings, so most texts need no reading.
        """
        return text if "%" not in text and "/*:" not in text else str(Permission.parse(text))

    def __str__(self) -> str:
        entity = WILD if self.entity is None else _NAME_UNSAFE.sub(_encode, self.entity)
        operation = WILD if self.operation is None else _NAME_UNSAFE.sub(_encode, self.operation)
        if self.entity_id is None:
            return f"{entity}:{operation}"
        return f"{entity}/{_ID_UNSAFE.sub(_encode, self.entity_id)}:{operation}"

    def allows(self, entity: str, entity_id: str | None, operation: str) -> bool:
        """Whether this one entry allows the operation; ``PermissionSet.allows`` means the same, faster."""
        return (
            (self.entity is None or self.entity == entity)
            and (self.entity_id is None or self.entity_id == entity_id)
            and (self.operation is None or self.operation == operation)
        )

    def covers(self, other: Permission) -> bool:
        """Whether everything that ``other`` allows is allowed by this entry."""
        return (
            (self.entity is None or self.entity == other.entity)
            and (self.entity_id is None or self.entity_id == other.entity_id)
            and (self.operation is None or self.operation == other.operation)
        )

    @property
    def key(self) -> Key:
        return self.entity, self.entity_id, self.operation

    def wider(self) -> tuple[Key, ...]:
        """The keys of every entry that covers this one: eight, not all different.

        Looked up among a thousand entries, where comparing each with each would take the process's only thread for
        seconds.
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
        raise PermissionSyntaxError(f"the {what} has * beside other characters; * stands alone, or write %2A")
    if "%" not in text:
        return text
    try:
        return _ESCAPES.sub(lambda found: bytes.fromhex(found[0].replace("%", "")).decode(), text)
    except UnicodeDecodeError:
        raise PermissionSyntaxError(f"the {what} has percent-encoded bytes that are not UTF-8") from None


def _encode(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))


_Operations = frozenset[str] | None
"""Operations allowed; None is every one."""

_NOTHING: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """Operations by entity; ``rest`` is what every entity has. They are not put together: that would be their
    product.
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
    """A set of permissions, compiled for lookup. Equal sets are one object (``of``), so thousands of grants share it.

    ``entries`` and ``texts`` are in the order of the texts; ``text`` joins them with spaces (an RFC 6749 scope value).
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
        """The set of these permissions; raises PermissionSyntaxError. The same permissions give the same object."""
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
        """Whether an entry allows this operation; without an id only entries for every id do. Hot path: dict lookups
        only.
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
        """The entry that allows this operation, the most exact one where several do; None where none does."""
        fitting = [entry for entry in self.entries if entry.allows(entity, entity_id, operation)]
        return min(fitting, key=_width, default=None)

    def covers(self, other: PermissionSet) -> bool:
        """Whether everything that ``other`` allows is allowed here.

        One entry against one entry is exact, because names are an open vocabulary: a name that no entry mentions
        fills each wildcard of the other's entry, and only a wildcard in the same place allows it.
        """
        return all(not self._held.isdisjoint(entry.wider()) for entry in other.entries)

    def covering(self, text: str) -> list[str]:
        """The entries that cover this permission, as texts, sorted. Raises PermissionSyntaxError."""
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
