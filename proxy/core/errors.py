"""Every error that patgate raises, each with its origin and whether the same call may be tried again.

    PatgateError
    ├── ConfigurationError          the operator's configuration; carries every problem found
    ├── StoreError
    │   ├── StoreUnavailable        the database does not answer or cannot write (retryable)
    │   │   └── OutcomeUnknown      whether the change is stored cannot be said before the disk answers again
    │   ├── StoreNewerSchema        the store was written by a newer patgate
    │   ├── StoreBehind             the store's epoch is lower than one that was already seen
    │   ├── NoStore                 the data directory has no store
    │   ├── DataDirBusy             another patgate holds the data directory
    │   ├── DataDirLost             the data directory was taken away while it was in use
    │   └── WrongKey                the store belongs to another secret key
    ├── ServiceError                a verb of the product said no; the caller can do something about it
    │   ├── NotFound
    │   ├── Conflict
    │   ├── Invalid                 names every field at fault and the problem with each
    │   ├── Forbidden               the actor may not do this; names the fields where fewer would do
    │   └── Unauthenticated         the credential by which the actor acts is not, or no longer, accepted
    ├── AuthorityError
    │   ├── AuthorityUnavailable    no authority to ask, or no answer in time (retryable)
    │   └── AuthorityOverloaded     the authority's queue is full (retryable)
    ├── WireError                   bytes on the worker link that are not a message
    └── PageError                   the shared page is not one of ours

A message is one clear sentence that names the place. It never holds a secret and never repeats raw input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Origin(StrEnum):
    """Whose the failure is: who has to act."""

    OPERATOR = "operator"
    CALLER = "caller"
    STORE = "store"
    AUTHORITY = "authority"
    INTERNAL = "internal"


class PatgateError(Exception):
    """The root; ``retryable`` says that the same call may succeed later with nothing changed."""

    origin: ClassVar[Origin] = Origin.INTERNAL
    retryable: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigurationProblem:
    """One mistake in the configuration: where (``routes[3].upstream``), on which line (1-based), and what."""

    path: str
    line: int | None
    message: str

    def located(self, file: object) -> str:
        """The mistake as one line that editors can follow: ``FILE:LINE: PATH: MESSAGE``."""
        place = f"{file}:{self.line}: " if self.line is not None else ""
        path = f"{self.path}: " if self.path else ""
        return f"{place}{path}{self.message}"

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class ConfigurationError(PatgateError):
    """The configuration cannot be used; ``problems`` holds every mistake found, in the order of the file."""

    origin = Origin.OPERATOR

    def __init__(self, problems: Iterable[ConfigurationProblem] | str) -> None:
        if isinstance(problems, str):
            problems = (ConfigurationProblem(path="", line=None, message=problems),)
        self.problems: tuple[ConfigurationProblem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class StoreError(PatgateError):
    """The store cannot be used."""

    origin = Origin.STORE


class StoreUnavailable(StoreError):
    """The database does not answer or cannot write; nothing was changed, unless it is an ``OutcomeUnknown``."""

    retryable = True


class OutcomeUnknown(StoreUnavailable):
    """A change was neither acknowledged nor undone: it may or may not be in force after the next start."""

    retryable = False


class StoreNewerSchema(StoreError):
    """The store's schema is newer than this patgate knows."""

    origin = Origin.OPERATOR


class StoreBehind(StoreError):
    """The store's epoch went backwards: an older store was restored."""

    origin = Origin.OPERATOR


class NoStore(StoreError):
    """There is no store in the data directory, and the command is not one that makes one."""

    origin = Origin.OPERATOR


class DataDirBusy(StoreError):
    """The data directory is in use by another patgate."""

    origin = Origin.OPERATOR


class DataDirLost(StoreError):
    """The data directory was removed, or another one put in its place, while it was in use."""

    origin = Origin.OPERATOR


class WrongKey(StoreError):
    """The store was made with another secret key."""

    origin = Origin.OPERATOR


class ServiceError(PatgateError):
    """A request to the control plane that is refused, with nothing changed."""

    origin = Origin.CALLER


class NotFound(ServiceError):
    """There is no such thing, or none that the caller may know of."""


class Conflict(ServiceError):
    """The thing exists already, or its state does not permit the change."""


FieldError = tuple[str, str]
"""The place of a field (``scopes[2]``) and what is wrong with it."""


class Invalid(ServiceError):
    """Fields of the request cannot be accepted; ``errors`` has all of them, in the order in which they were found."""

    def __init__(self, field: str, problem: str, *more: FieldError) -> None:
        self.errors: tuple[FieldError, ...] = ((field, problem), *more)
        super().__init__("; ".join(f"{place}: {text}" for place, text in self.errors))


class Forbidden(ServiceError):
    """The actor may not do this. ``errors`` name the fields that ask for too much, where that is why; ``permission`` is
    the one that would be needed, where it is one.
    """

    def __init__(self, message: str, *errors: FieldError, permission: str = "") -> None:
        self.errors = errors
        self.permission = permission
        super().__init__(message)


class Unauthenticated(ServiceError):
    """The credential by which the actor acts is unknown, or has been ended, narrowed or replaced meanwhile."""


class AuthorityError(PatgateError):
    """The authority did not decide."""

    origin = Origin.AUTHORITY


class AuthorityUnavailable(AuthorityError):
    """There is no authority to ask, or it did not answer in time."""

    retryable = True


class AuthorityOverloaded(AuthorityError):
    """The authority has more to verify than it can queue."""

    retryable = True


class WireError(PatgateError):
    """Bytes on the worker link that are not a message; the link must be closed."""


class PageError(PatgateError):
    """The shared page is too small, misaligned or not one of ours."""
