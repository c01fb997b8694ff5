"""The environment over the file: ``PATGATE_SECTION__KEY``, and ``…_FILE`` for secrets.

pydantic-settings is not used for this: its sources merge values before validation and forget where each came from,
so a problem could name neither the variable nor the line; it ignores variables that name no setting; and it parses
JSON for nested values only. What is left for it to do is the forty lines of ``overlay``.

Not every variable with our prefix is ours: users keep a token in ``PATGATE_TOKEN``. One that names a way into a section
(``__``), one whose name is a setting's or nearly so, and one with a setting's words and one underscore where two are
needed (``spelling``), are meant as settings and wrong if they are none. Any other belongs to somebody else, and is
ignored with a warning (``ignored``).

A value is read as YAML (so also as JSON), except where the setting is text: that is taken as it stands, so that a
``secret_key`` of digits stays text and ``[::]:8080`` is no list.
"""

import base64
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, SecretStr

from proxy.core.errors import ConfigurationProblem
from proxy.settings.addresses import Bind
from proxy.settings.model import Settings
from proxy.settings.problems import Loc, ValueOrigins
from proxy.settings.sources.document import Tree, scalar
from proxy.settings.sources.spelling import plain_type, two_underscores
from proxy.settings.values import quoted

PREFIX: Final = "PATGATE_"
RESERVED: Final = frozenset({"PATGATE_CONFIG", "PATGATE_BOOT_FD", "PATGATE_PACKAGE"})
"""Variables of ours that are no settings: where the file is, and the hand-over from the supervisor."""
_FILE: Final = "_file"
_NEAR: Final = 0.8
"""How alike (difflib, 0 to 1) a name is to a setting's for it to count as that one misspelled."""
FROM_FILE: Final[Mapping[str, Loc]] = {
    "PATGATE_SECRET_KEY_FILE": ("secret_key",),
    "PATGATE_STORE_FILE": ("store",),
    "PATGATE_NOTICES__SECRET_FILE": ("notices", "secret"),
}
"""Variables that name a file which holds the value."""

_KUBERNETES: Final = re.compile(
    r"PATGATE_(?!.*__)(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)?)"
)
"""What Kubernetes puts into every pod beside a Service that is called patgate or patgate-something."""
_MAX_FILE_BYTES: Final = 64 * 1024


def overlay(tree: dict[str, Tree], origins: ValueOrigins, environ: Mapping[str, str]) -> list[ConfigurationProblem]:
    """Put the settings of the environment over those of the file, in place; returns the problems met on the way.

    Unknown names that are meant as settings are put into the tree like any other, for validation to report with a
    suggestion.
    """
    problems: list[ConfigurationProblem] = []
    names = [name for name in environ if name.startswith(PREFIX) and name not in RESERVED and name not in FROM_FILE]
    # Sections before what is in them, so that PATGATE_LISTEN and PATGATE_LISTEN__PROXY__BIND both count.
    for name in sorted(names, key=lambda each: (each.count("__"), each)):
        if (meant := _one_underscore(name)) is not None:
            message = f"names no setting; write {meant} (two underscores between a section and what is in it)"
            problems.append(ConfigurationProblem(path=name, line=None, message=message))
        elif not _is_foreign(name):
            _set(tree, origins, name, environ[name], problems)
    for name, loc in FROM_FILE.items():
        if name not in environ:
            continue
        if name.removesuffix("_FILE") in environ:
            message = f"is set beside {name.removesuffix('_FILE')}; set one of the two"
            problems.append(ConfigurationProblem(path=name, line=None, message=message))
        content = _content(Path(environ[name]))
        if content is None:
            message = f"the file {quoted(environ[name])} cannot be read, is empty or is larger than 64 KiB"
            problems.append(ConfigurationProblem(path=name, line=None, message=message))
        else:
            _put(tree, loc, content)
            origins.override(loc, name)
    return problems


def ignored(environ: Mapping[str, str]) -> list[str]:
    """The variables with our prefix that belong to somebody else, without those that Kubernetes makes by itself."""
    names = [name for name in environ if name.startswith(PREFIX) and name not in RESERVED and name not in FROM_FILE]
    return sorted(name for name in names if _is_foreign(name) and not _KUBERNETES.fullmatch(name))


def _one_underscore(name: str) -> str | None:
    """The variable that is meant by one with a setting's words and too few underscores; None for any other."""
    words = name.removeprefix(PREFIX)
    if "__" in words or _KUBERNETES.fullmatch(name) or words.lower() in Settings.model_fields:
        return None
    return two_underscores(words, FROM_FILE, PREFIX)


def _is_foreign(name: str) -> bool:
    meant = name.removeprefix(PREFIX).lower()
    if not meant or "__" in meant or _one_underscore(name) is not None:
        return False
    known = [*Settings.model_fields, *(each.removeprefix(PREFIX).lower() for each in FROM_FILE)]
    if meant.endswith(_FILE):
        # Judged by what it holds: by its last word alone TOKEN_FILE would be like STORE_FILE.
        meant, known = meant.removesuffix(_FILE), [each.removesuffix(_FILE) for each in known if each.endswith(_FILE)]
    # Of a short name with two letters swapped little is alike, but they are the same letters.
    swapped = any(sorted(meant) == sorted(each) for each in known)
    return not swapped and not difflib.get_close_matches(meant, known, n=1, cutoff=_NEAR)


def _set(
    tree: dict[str, Tree], origins: ValueOrigins, name: str, value: str, problems: list[ConfigurationProblem]
) -> None:
    loc, annotation, problem = _locate(tree, name.removeprefix(PREFIX).split("__"))
    if problem is not None:
        problems.append(ConfigurationProblem(path=name, line=None, message=problem))
        return
    _put(tree, loc, _value(annotation, value))
    origins.override(loc, name)


def _locate(tree: Tree, parts: list[str]) -> tuple[Loc, Any, str | None]:
    """The way to the setting that a variable's parts name, its declared type (None: unknown), or what is wrong."""
    loc: list[str | int] = []
    annotation: Any = Settings
    here: Tree = tree
    for part in parts:
        annotation = plain_type(annotation)
        step: str | int = part.lower()
        if not part:
            return tuple(loc), None, "names no setting; write PATGATE_SECTION__KEY"
        if get_origin(annotation) is tuple:
            length = len(here) if isinstance(here, list) else 0
            if not (part.isascii() and part.isdigit() and int(part) <= length):
                return tuple(loc), None, f"{quoted(part)} is not a place in this list, which has {length} entries"
            step = int(part)
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) is dict:
            step = _existing(here, part, default=part if loc[-1] == "operations" else part.lower())
            annotation = get_args(annotation)[1]
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            declared = annotation.model_fields.get(part.lower())
            annotation = None if declared is None else declared.annotation
        else:
            annotation = None
        loc.append(step)
        here = _below(here, step)
    return tuple(loc), annotation, None


def _existing(here: Tree, part: str, *, default: str) -> str:
    """The name in the file that a variable's part means; variables cannot spell ``-``, ``.`` or lower case."""
    if isinstance(here, dict):
        for name in here:
            if re.sub(r"[^A-Z0-9]", "_", name.upper()) == part.upper():
                return name
    return default


def _below(here: Tree, step: str | int) -> Tree:
    if isinstance(here, dict):
        return here.get(str(step))
    if isinstance(here, list) and isinstance(step, int) and step < len(here):
        return here[step]
    return None


def _put(tree: dict[str, Tree], loc: Loc, value: Tree) -> None:
    here: Tree = tree
    for step, following in zip(loc, (*loc[1:], None), strict=True):
        below = _below(here, step)
        if following is None:
            below = value
        elif not isinstance(below, (list if isinstance(following, int) else dict)):
            below = [] if isinstance(following, int) else {}
        if isinstance(here, list) and isinstance(step, int):
            here[step:] = [below, *here[step + 1 :]]
        elif isinstance(here, dict):
            here[str(step)] = below
        here = below


def _value(annotation: Any, text: str) -> Tree:
    plain = plain_type(annotation)
    if plain is Path and text:
        # The file's relative paths start at the file; the environment's where the process was started.
        return str(Path.cwd() / text)
    if plain is SecretStr:
        return text
    if plain in (str, Path, Bind):
        return None if text == "null" and plain is not annotation else text
    return scalar(text)


def _content(path: Path) -> str | None:
    """A secret's file without the line end that editors add; bytes that are not text come as base64."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError:
        return None
    if not raw.strip() or len(raw) > _MAX_FILE_BYTES:
        return None
    try:
        return raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        return base64.b64encode(raw).decode("ascii")
