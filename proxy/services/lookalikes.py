"""Names that may be read as others: words whose letters are of more than one script.

A word is mixed where its letters have no script in common (UTS 39, section 5.1), except for the scripts that are
written together: Chinese, Japanese and Korean with Latin (the same, "highly restrictive"). A name of several words may
have a script for each, as names of people and things do. Whoever gave the name is warned and not refused.

The script of a letter is the first word of its name in the Unicode Character Database, which the standard library has;
the property itself it has not. Letters that belong to many scripts (modifiers, marks, digits) count for none. A word
that is written in one other script altogether is not found: this knows no shapes of letters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Final

_SAME: Final[Mapping[str, str]] = {"IDEOGRAPHIC": "CJK", "KANGXI": "CJK"}
_TOGETHER: Final = (
    frozenset({"LATIN", "CJK", "HIRAGANA", "KATAKANA"}),
    frozenset({"LATIN", "CJK", "BOPOMOFO"}),
    frozenset({"LATIN", "CJK", "HANGUL"}),
)


def scripts(word: str) -> frozenset[str]:
    """The scripts of the letters of ``word``, as the first words of their names: LATIN, CYRILLIC, GREEK."""
    if word.isascii():
        return frozenset()
    return frozenset(filter(None, map(_script, unicodedata.normalize("NFKC", word))))


def mixed(text: str) -> bool:
    """Whether a word of ``text`` has letters of scripts that are not written together."""
    if text.isascii():
        return False
    return any(_is_mixed(word) for word in _words(text))


def mixed_fields(fields: Mapping[str, str]) -> list[str]:
    """The names of the fields with such a word, for the audit event."""
    return [name for name, text in fields.items() if mixed(text)]


def warnings(fields: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence for each field with such a word; it repeats nothing of the text."""
    return tuple(
        f"the {name.replace('_', ' ')} mixes letters of several scripts in one word, and may look like another one"
        for name in mixed_fields(fields)
    )


def _is_mixed(word: str) -> bool:
    found = scripts(word)
    return len(found) > 1 and not any(found <= together for together in _TOGETHER)


def _words(text: str) -> list[str]:
    """Runs of letters, marks and digits."""
    return "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in text).split()


def _script(char: str) -> str:
    if unicodedata.category(char) not in ("Ll", "Lu", "Lt", "Lo"):
        return ""
    name = unicodedata.name(char, "").partition(" ")[0].partition("-")[0]
    return _SAME.get(name, name)
