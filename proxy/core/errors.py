"""All errors that patgate raises, each with its origin and whether a retry may succeed.

    PatgateError
    ├── ConfigurationError          the operator's configuration; holds every problem found
    ├── StoreError
    │   ├── StoreUnavailable        the database does not answer or cannot write (retryable)
    │   │   └── OutcomeUnknown      it is unknown whether a change is stored, until the disk works again
    │   │       └── InDoubt         the same in a store with several writers, for this change alone
    │   ├── StoreNewerSchema        a newer patgate wrote the store
    │   ├── StoreBehind             the store's epoch is lower than one seen before
    │   ├── NoStore                 the data directory has no store
    │   ├── DataDirBusy             another patgate uses the data directory
    │   ├── DataDirLost             the data directory was removed while in use
    │   └── WrongKey                the store belongs to another secret key
    ├── ServiceError                a service refused a request; the caller can correct it
    │   ├── NotFound
    │   ├── Conflict
    │   ├── Invalid                 names every invalid field and its problem
    │   ├── Forbidden               the actor may not do this; names the fields that ask for too much
    │   └── Unauthenticated         the actor's credential is not, or no longer, valid
    ├── AuthorityError
    │   ├── AuthorityUnavailable    no connection to the authority, or no answer in time (retryable)
    │   └── AuthorityOverloaded     the authority's queue is full (retryable)
    ├── CommandRefused              a child process did not carry out a command (``core.ipc.child_protocol``)
    ├── WireError                   bytes on the worker link that are not a message
    └── PageError                   the shared memory page has no valid content

A message is one clear sentence that names the place. It never holds a secret and never repeats raw input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Origin(StrEnum):
    """Where a failure comes from, and so who has to act."""

    OPERATOR = "operator"
    CALLER = "caller"
    STORE = "store"
    AUTHORITY = "authority"
    INTERNAL = "internal"


class PatgateError(Exception):
    """The root; ``retryable``: the same call may succeed later without a change."""

    origin: ClassVar[Origin] = Origin.INTERNAL
    retryable: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigurationProblem:
    """One mistake in the configuration: its path (``routes[3].upstream``), line (1-based) and message."""

    path: str
    line: int | None
    message: str

    def located(self, file: object) -> str:
        """The mistake as one line that editors can link to: ``FILE:LINE: PATH: MESSAGE``."""
        place = f"{file}:{self.line}: " if self.line is not None else ""
        path = f"{self.path}: " if self.path else ""
        return f"{place}{path}{self.message}"

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class ConfigurationError(PatgateError):
    """The configuration is invalid; ``problems`` holds every mistake found, in the order of the file."""

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
    """The database does not answer or cannot write. Except for ``OutcomeUnknown``, nothing was changed."""

    retryable = True


class OutcomeUnknown(StoreUnavailable):
    """A change was neither acknowledged nor rolled back: it may or may not be in force after the next start."""

    retryable = False


class InDoubt(OutcomeUnknown):
    """The connection was lost while a change was committed, and no answer says whether it is stored."""


class StoreNewerSchema(StoreError):
    """The store's schema is newer than this version of patgate supports."""

    origin = Origin.OPERATOR


class StoreBehind(StoreError):
    """The store's epoch went backwards: an older store was restored."""

    origin = Origin.OPERATOR


class NoStore(StoreError):
    """The data directory has no store, and this command does not create one."""

    origin = Origin.OPERATOR


class DataDirBusy(StoreError):
    """The data directory is in use by another patgate."""

    origin = Origin.OPERATOR


class DataDirLost(StoreError):
    """The data directory was removed or replaced while it was in use."""

    origin = Origin.OPERATOR


class WrongKey(StoreError):
    """The store was created with another secret key."""

    origin = Origin.OPERATOR


class ServiceError(PatgateError):
    """A service refused a request and changed nothing."""

    origin = Origin.CALLER


class NotFound(ServiceError):
    """The object does not exist, or the caller may not know that it does."""


class Conflict(ServiceError):
    """The object exists already, or its state does not permit the change."""


FieldError = tuple[str, str]
"""The place of a field (``scopes[2]``) and what is wrong with it."""


class Invalid(ServiceError):
    """Fields of the request are invalid; ``errors`` lists all of them, in the order found."""

    def __init__(self, field: str, problem: str, *more: FieldError) -> None:
        self.errors: tuple[FieldError, ...] = ((field, problem), *more)
        super().__init__("; ".join(f"{place}: {text}" for place, text in self.errors))


class Forbidden(ServiceError):
    """The actor may not do this.

    ``errors`` names the fields that ask for too much, if that is the cause; ``permission`` is the missing permission,
    if there is one.
    """

    def __init__(self, message: str, *errors: FieldError, permission: str = "") -> None:
        self.errors = errors
        self.permission = permission
        super().__init__(message)


class Unauthenticated(ServiceError):
    """The actor's credential is unknown, or has been revoked, narrowed or replaced meanwhile."""


class AuthorityError(PatgateError):
    """The authority did not decide."""

    origin = Origin.AUTHORITY


class AuthorityUnavailable(AuthorityError):
    """There is no connection to the authority, or it did not answer in time."""

    retryable = True


class AuthorityOverloaded(AuthorityError):
    """The authority's queue of verifications is full."""

    retryable = True


class WireError(PatgateError):
    """Bytes on the worker link are not a message; the link must be closed."""


class PageError(PatgateError):
    """The shared memory page is too small, misaligned or not written by this version of patgate."""
