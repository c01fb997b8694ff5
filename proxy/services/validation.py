"""All that is wrong with the fields of one request, said at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from proxy.core.errors import FieldError, Invalid

T = TypeVar("T")


class Fields:
    """Gathers the faults of one request's fields; ``done`` raises them together.

    What a check could not make is None, which nothing may be done with before ``done``.
    """

    def __init__(self) -> None:
        self._errors: list[FieldError] = []

    def check(self, make: Callable[[], T]) -> T | None:
        """What ``make`` returns; None where it raises Invalid, which is kept."""
        try:
            return make()
        except Invalid as error:
            self._errors.extend(error.errors)
            return None

    def fault(self, field: str, problem: str) -> None:
        """Keep one more fault: ``problem`` says what is allowed there and repeats nothing."""
        self._errors.append((field, problem))

    def done(self) -> None:
        """Raises Invalid with every fault that was found."""
        if self._errors:
            raise Invalid(*self._errors[0], *self._errors[1:])
