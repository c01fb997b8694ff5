"""Recognising misspelled variables: the words of a setting with one underscore after a section instead of two.

``PATGATE_POLICY_MAX_LIFETIME`` is not a setting, but its operator certainly meant one and relies on it.
"""

import re
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel

from proxy.settings.model import Settings

_NAME: Final = "([A-Z0-9_]*[A-Z0-9])"
_PLACE: Final = "([0-9]{1,6})"


def plain_type(annotation: Any) -> Any:
    """The type inside ``Annotated[…]`` and ``… | None``."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            inner = [each for each in get_args(annotation) if each is not type(None)]
            if len(inner) != 1:
                return annotation
            annotation = inner[0]
        else:
            return annotation


def two_underscores(words: str, files: Mapping[str, tuple[str | int, ...]], prefix: str) -> str | None:
    """The correct variable for these words (a name without the prefix), if they are the words of a setting.

    ``files`` are the variables that name a file with the value; ``prefix`` begins every variable.
    """
    words = words.upper()
    if not words.lower().startswith(tuple(f"{section}_" for section in Settings.model_fields)):
        return None
    for variable in files:
        if variable.removeprefix(prefix).replace("__", "_") == words and "__" in variable:
            return variable
    for parts, pattern in _patterns():
        if (match := pattern.fullmatch(words)) is not None:
            named = iter(match.groups())
            return prefix + "__".join(next(named) if part in (_NAME, _PLACE) else part for part in parts)
    return None


@cache
def _patterns() -> tuple[tuple[tuple[str, ...], re.Pattern[str]], ...]:
    """All setting paths with at least two words of the model, those with the most words first.

    Names in a map can be anything: ``PATGATE_ROLES_FILE`` is more likely a variable of another program than a role.
    """
    ways = sorted(((-_words(way), way) for way in _ways(Settings, ())), key=lambda counted: counted[0])
    return tuple((way, re.compile("_".join(way))) for words, way in ways if words < -1)


def _words(way: tuple[str, ...]) -> int:
    return sum(part not in (_NAME, _PLACE) for part in way)


def _ways(annotation: Any, way: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield way
    annotation = plain_type(annotation)
    if get_origin(annotation) is tuple:
        yield from _ways(get_args(annotation)[0], (*way, _PLACE))
    elif get_origin(annotation) is dict:
        yield from _ways(get_args(annotation)[1], (*way, _NAME))
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield from _ways(field.annotation, (*way, name.upper()))
