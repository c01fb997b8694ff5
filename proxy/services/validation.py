"""Validation of request fields: collects every error of a request and raises them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from proxy.core.errors import FieldError, Invalid

T = TypeVar("T")


class Fields:
    """Collects the errors of one request's fields; ``done`` raises them together.

    A failed ``check`` returns None, which must not be used before ``done``.
    """

    def __init__(self) -> None:
        self._errors: list[FieldError] = []

    def check(self, make: Callable[[], T]) -> T | None:
        """What ``make`` returns; None if it raises Invalid, which is collected."""
        try:
            return make()
        except Invalid as error:
            self._errors.extend(error.errors)
            return None

    def fault(self, field: str, problem: str) -> None:
        """Collect one more error: ``problem`` says what is allowed and does not repeat the value."""
        self._errors.append((field, problem))

    def done(self) -> None:
        """Raise Invalid with every collected error, if there are any."""
        if self._errors:
            raise Invalid(*self._errors[0], *self._errors[1:])
