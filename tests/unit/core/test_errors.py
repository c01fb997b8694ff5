"""The error tree: origins, retryability, and a docstring that shows the actual tree."""

from __future__ import annotations

import pytest

from proxy.core import errors
from proxy.core.errors import ConfigurationError, ConfigurationProblem, Invalid, Origin, PatgateError


def tree(root: type[PatgateError]) -> list[type[PatgateError]]:
    return [
        root,
        *(leaf for child in root.__subclasses__() if child.__module__ == root.__module__ for leaf in tree(child)),
    ]


@pytest.mark.parametrize("error", tree(PatgateError))
def test_every_error_has_an_origin_and_is_in_the_tree(error: type[PatgateError]) -> None:
    assert isinstance(error.origin, Origin)
    assert error.__name__ in (errors.__doc__ or "")
    assert error.__doc__


def test_only_temporary_failures_are_retryable() -> None:
    assert {error.__name__ for error in tree(PatgateError) if error.retryable} == (
        {"StoreUnavailable", "AuthorityUnavailable", "AuthorityOverloaded"}
    )


def test_a_configuration_error_has_every_problem_with_its_line() -> None:
    problems = [ConfigurationProblem(path="routes[3].upstream", line=12, message="there is no such upstream")]
    error = ConfigurationError([*problems, ConfigurationProblem(path="", line=None, message="the file is empty")])
    assert str(error) == "line 12: routes[3].upstream: there is no such upstream\nthe file is empty"
    assert ConfigurationError("no file").problems == (ConfigurationProblem(path="", line=None, message="no file"),)


def test_an_invalid_field_is_named() -> None:
    error = Invalid("name", "it is empty")
    assert (error.errors, str(error)) == ((("name", "it is empty"),), "name: it is empty")


def test_every_invalid_field_is_named_at_once() -> None:
    error = Invalid("name", "it is empty", ("scopes[2]", "there is no colon"))
    assert str(error) == "name: it is empty; scopes[2]: there is no colon"
    assert [place for place, _ in error.errors] == ["name", "scopes[2]"]
