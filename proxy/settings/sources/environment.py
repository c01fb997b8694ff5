"""Settings from environment variables, which override the file: ``PATGATE_SECTION__KEY``, and ``…_FILE`` for secrets.

pydantic-settings is not used: it merges values before validation and discards their origins, so that a problem could
name neither variable nor line; it ignores variables that name no setting; and it parses JSON only for nested values. It
would save only the forty lines of ``overlay``.

Not every variable with the prefix is a setting: users keep a token in ``PATGATE_TOKEN``. A variable is meant as a
setting, and is an error if it is none, if it contains ``__``, if its name is a setting's or similar to one, or if it
has one underscore where two are needed (``spelling``). All others are ignored with a warning (``ignored``).

A value is parsed as YAML (which includes JSON). Text settings are not parsed, so that a ``secret_key`` of digits stays
text and ``[::]:8080`` is not read as a list.
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
"""Variables of patgate that are no settings: the path of the file, and values that children inherit."""
_FILE: Final = "_file"
_NEAR: Final = 0.8
"""The similarity (difflib, 0 to 1) from which a name counts as a misspelled setting."""
FROM_FILE: Final[Mapping[str, Loc]] = {
    "PATGATE_SECRET_KEY_FILE": ("secret_key",),
    "PATGATE_STORE_FILE": ("store",),
    "PATGATE_STORE_SESSION_FILE": ("store_session",),
    "PATGATE_STORE_PASSWORD_FILE": ("store_password",),
    "PATGATE_NOTICES__SECRET_FILE": ("notices", "secret"),
}
"""Variables that name a file with the value."""

_KUBERNETES: Final = re.compile(
    r"PATGATE_(?!.*__)(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)?)"
)
"""Variables that Kubernetes sets in every pod if a Service is called patgate or patgate-something."""
_MAX_FILE_BYTES: Final = 64 * 1024


def overlay(tree: dict[str, Tree], origins: ValueOrigins, environ: Mapping[str, str]) -> list[ConfigurationProblem]:
    """Apply the settings of the environment to ``tree``, in place, and return the problems.

    Unknown names that are meant as settings are added as well, so that validation reports them with a suggestion.
    """
    problems: list[ConfigurationProblem] = []
    names = [name for name in environ if name.startswith(PREFIX) and name not in RESERVED and name not in FROM_FILE]
    # Sections before their settings, so that PATGATE_LISTEN and PATGATE_LISTEN__PROXY__BIND both count.
    for name in sorted(names, key=lambda each: (each.count("__"), each)):
        if (meant := _one_underscore(name)) is not None:
            message = f"names no setting; write {meant} (two underscores between a section and its setting)"
            problems.append(ConfigurationProblem(path=name, line=None, message=message))
        elif not _is_foreign(name):
            _set(tree, origins, name, environ[name], problems)
    for name, loc in FROM_FILE.items():
        if name not in environ:
            continue
        if name.removesuffix("_FILE") in environ:
            message = f"is set together with {name.removesuffix('_FILE')}; set only one of the two"
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
    """The variables with the prefix that are not meant as settings, without those that Kubernetes sets."""
    names = [name for name in environ if name.startswith(PREFIX) and name not in RESERVED and name not in FROM_FILE]
    return sorted(name for name in names if _is_foreign(name) and not _KUBERNETES.fullmatch(name))


def _one_underscore(name: str) -> str | None:
    """The variable that was meant, if the name has a setting's words but too few underscores; else None."""
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
        # Compare without the suffix, which alone would make TOKEN_FILE similar to STORE_FILE.
        meant, known = meant.removesuffix(_FILE), [each.removesuffix(_FILE) for each in known if each.endswith(_FILE)]
    # A short name with two swapped letters has a low similarity, but the same letters.
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
    """The path of the setting that a variable's parts name, its declared type (None: unknown), or a problem."""
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
                return tuple(loc), None, f"{quoted(part)} is not an index of this list, which has {length} entries"
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
    """The name in the file that a variable's part means; variables cannot contain ``-``, ``.`` or lower case."""
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
        # Relative paths start at the file's directory; those of the environment at the working directory.
        return str(Path.cwd() / text)
    if plain is SecretStr:
        return text
    if plain in (str, Path, Bind):
        return None if text == "null" and plain is not annotation else text
    return scalar(text)


def _content(path: Path) -> str | None:
    """The content of a secret's file without surrounding white space; bytes that are not UTF-8 as base64."""
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
