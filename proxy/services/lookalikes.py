"""Finds look-alike names: words that mix letters of several scripts and can be mistaken for other words.

A word is mixed if its letters have no script in common (UTS 39, section 5.1), except for scripts that are commonly
written together: Chinese, Japanese and Korean with Latin ("highly restrictive", same section). Each word of a name may
be in another script, as in names of people and things. The caller gets a warning; the name is not refused.

The script of a letter is the first word of its name in the Unicode Character Database: the standard library has the
names, but not the script property. Letters that belong to many scripts (modifiers, marks, digits) are ignored. A word
written entirely in one other script is not found, because letter shapes are not compared.
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
    """The scripts of the letters of ``word``: the first words of their Unicode names, such as LATIN or CYRILLIC."""
    if word.isascii():
        return frozenset()
    return frozenset(filter(None, map(_script, unicodedata.normalize("NFKC", word))))


def mixed(text: str) -> bool:
    """Whether a word of ``text`` mixes scripts that are not written together."""
    if text.isascii():
        return False
    return any(_is_mixed(word) for word in _words(text))


def mixed_fields(fields: Mapping[str, str]) -> list[str]:
    """The names of the fields with a mixed word, for the audit event."""
    return [name for name, text in fields.items() if mixed(text)]


def warnings(fields: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence for each field with a mixed word, which does not repeat the text."""
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
