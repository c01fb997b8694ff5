"""Loading settings from a file and the environment; reports every problem at once.

The steps: parse the file as YAML, apply the environment, validate the fields, read the files of header values, check
the rules between fields. Invalid fields are cut out, so that the rules still check the rest; only a YAML syntax error
hides later problems.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from proxy.core.errors import ConfigurationError, ConfigurationProblem
from proxy.settings.checks.candidate import Candidate
from proxy.settings.model import Settings
from proxy.settings.problems import Loc, ValueOrigins, sentence
from proxy.settings.rules import violations
from proxy.settings.sources import document
from proxy.settings.sources.environment import overlay
from proxy.settings.sources.header_values import with_header_values
from proxy.settings.values import quoted_path

_MAX_FILE_BYTES: Final = 16 * 2**20
_STAND_IN_PATH: Final = "/"


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Load the settings of a file, overridden by the environment; without a path, of the environment alone.

    Relative paths in the file start at the file's directory, those in the environment at the working directory.
    Raises ConfigurationError with every problem: first those with lines, in order, then those of the environment.
    """
    if path is None:
        return _settle({}, ValueOrigins(), [], environ, Path.cwd())
    read = document.parse(_read(path))
    if isinstance(read.data, dict):
        return _settle(read.data, read.origins, list(read.problems), environ, path.absolute().parent)
    problems = list(read.problems)
    if not problems:
        message = 'must be "name: value" lines, such as brand: acme'
        problems.append(ConfigurationProblem(path="", line=read.origins.of(()).line, message=message))
    # The file cannot be checked any further; report the problems of the environment as well.
    problems += overlay({}, ValueOrigins(), environ)
    raise ConfigurationError(problems)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise ConfigurationError(f"The configuration file {quoted_path(path)} cannot be read: {why}.") from error
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"The configuration file {quoted_path(path)} is larger than 16 MiB.")
    return content


def _settle(
    tree: dict[str, Any],
    origins: ValueOrigins,
    problems: list[ConfigurationProblem],
    environ: Mapping[str, str],
    base: Path,
) -> Settings:
    problems += overlay(tree, origins, environ)
    outcome = _validate(tree, base)
    for error in outcome.errors:
        loc = _loc(error)
        key = error["type"] == "extra_forbidden" or error["loc"][-1:] == ("[key]",)
        problems.append(origins.problem(loc, sentence(error, loc, _siblings(loc)), key=key))
    settings = None
    if outcome.candidate is not None:
        settings, unread = with_header_values(outcome.candidate)
        for violation in (*unread, *violations(outcome.candidate)):
            line = None if violation.other is None else origins.of(violation.other).line
            message = violation.message if line is None else f"{violation.message} (line {line})"
            problems.append(origins.problem(violation.loc, message))
    if problems or settings is None:
        raise ConfigurationError(_in_order(problems))
    return settings


def _in_order(problems: Iterable[ConfigurationProblem]) -> list[ConfigurationProblem]:
    unique = dict.fromkeys(problems)
    return sorted(unique, key=lambda problem: (problem.line is None, problem.line or 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    errors: tuple[ErrorDetails, ...]
    candidate: Candidate | None
    """None if no settings were left after cutting out the errors."""


class _Cut:
    """Marks an item for removal, while the others keep their positions."""


def _validate(tree: dict[str, Any], base: Path) -> _Outcome:
    """All errors of the fields, and the settings without the invalid fields.

    Without a required field its section is incomplete, so the next round cuts the section. Errors of later rounds are
    such consequences and are not reported.
    """
    errors: tuple[ErrorDetails, ...] | None = None
    holes: set[Loc] = set()
    rest: Any = tree
    while True:
        try:
            settings = Settings.model_validate(rest, context={"base": base})
        except ValidationError as failed:
            causes = _causes(failed.errors(include_url=False))
            errors = tuple(causes) if errors is None else errors
            cuts = {_cut_at(error) for error in causes} - {()}
            if not cuts or cuts <= holes:
                return _Outcome(errors=errors, candidate=None)
            holes |= cuts
            rest = _without(rest, cuts, ())
            continue
        named = tree.get("upstreams") or {}
        names = frozenset(map(str, named)) if isinstance(named, dict) else None
        candidate = Candidate(settings=settings, holes=frozenset(holes), upstreams=names)
        return _Outcome(errors=errors or (), candidate=candidate)


def _causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """The errors except for lists that are empty only because their items are invalid."""
    locs = [_loc(error) for error in errors]

    def caused(error: ErrorDetails) -> bool:
        loc = _loc(error)
        return error["type"] == "too_short" and any(len(each) > len(loc) and each[: len(loc)] == loc for each in locs)

    return [error for error in errors if not caused(error)]


def _loc(error: ErrorDetails) -> Loc:
    return tuple(part for part in error["loc"] if part != "[key]")


def _cut_at(error: ErrorDetails) -> Loc:
    loc = _loc(error)
    if error["type"] == "missing" and not (loc[0] == "routes" and loc[-1] == "path"):
        return loc[:-1]
    return loc


def _without(value: Any, cuts: set[Loc], loc: Loc) -> Any:
    """A copy without the cut values. Routes keep their positions: a cut route, or a cut path, gets a stand-in."""
    if len(loc) == 2 and loc[0] == "routes":
        if loc in cuts:
            return {"path": _STAND_IN_PATH, "access": "denied"}
        if (*loc, "path") in cuts and isinstance(value, dict):
            value = {**value, "path": _STAND_IN_PATH}
            cuts = cuts - {(*loc, "path")}
    if loc in cuts:
        return _Cut
    if isinstance(value, dict):
        kept = {name: _without(below, cuts, (*loc, name)) for name, below in value.items()}
        return {name: below for name, below in kept.items() if below is not _Cut}
    if isinstance(value, (list, tuple)):
        items = (_without(below, cuts, (*loc, place)) for place, below in enumerate(value))
        return [below for below in items if below is not _Cut]
    return value


def _siblings(loc: Loc) -> list[str]:
    """The valid names in the section that contains ``loc``."""
    section: Any = Settings
    for part in loc[:-1]:
        if isinstance(section, type) and issubclass(section, BaseModel):
            field = section.model_fields.get(str(part))
            section = None if field is None else field.annotation
        else:
            section = get_args(section)[-1 if get_origin(section) is dict else 0] if get_args(section) else None
        section = _section(section)
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def _section(annotation: Any) -> Any:
    """The ``X`` of ``X | None`` and of ``Annotated[X, …]``."""
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0]
    inner = [each for each in get_args(annotation) if each is not type(None)]
    return inner[0] if len(inner) == 1 and get_origin(annotation) is not tuple else annotation
