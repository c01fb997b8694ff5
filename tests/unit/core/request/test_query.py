"""Conditions on the query, one spelling at a time."""

from __future__ import annotations

import pytest

from proxy.core.request.query import Conditions, QueryReading

PUSH = ((b"service", b"git-receive-pack"),)


@pytest.mark.parametrize(
    "query", [b"?service=git-receive-pack", b"?a=1&service=git-receive-pack&b=%26;", b"?a&service=git-receive-pack"]
)
def test_a_parameter_with_exactly_the_value_meets_the_condition(query: bytes) -> None:
    assert QueryReading(query).meets(PUSH) is True


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"?",
        b"?service",
        b"?service=",
        b"?service=git-upload-pack",
        b"?a=1",
        b"?services=1&xservice=2",
        b"?ser-vice=1",
    ],
)
def test_without_the_parameter_or_with_another_value_the_condition_is_not_met(query: bytes) -> None:
    assert QueryReading(query).meets(PUSH) is False


@pytest.mark.parametrize(
    "query",
    [
        b"?service=git-receive-pack&service=git-receive-pack",
        b"?service=git-receive-pack&x?y",
        b"?service=git-receive-pack&x=%253Fy",
        b"?service=git-upload-pack&service=git-receive-pack",
        b"?service&service=git-receive-pack",
        b"?Service=git-receive-pack",
        b"?service=git-upload-pack&SERVICE=git-receive-pack",
        b"?%73ervice=git-receive-pack",
        b"?%2573ervice=git-receive-pack",
        b"?%252573ervice=git-receive-pack",
        b"?%25252573ervice=git-receive-pack",
        b"?+service=git-receive-pack",
        b"?service+=git-receive-pack",
        b"?%20service=git-receive-pack",
        b"?service%00=git-receive-pack",
        b"?service[]=git-receive-pack",
        b"?service%5B0%5D=git-receive-pack",
        b"?[service]=git-receive-pack",
        b"?%5Bservice%5D=git-receive-pack",
        b"?service=git-upload-pack&[service]=git-receive-pack",
        b"?[service][]=git-receive-pack",
        b"?[[service]]=git-receive-pack",
        b"?service.=git-receive-pack",
        b"?serv%FFice=git-receive-pack",
        b"?%EF%BD%93ervice=git-receive-pack",
        b"?a=1;service=git-receive-pack",
        b"?a=1%26service=git-receive-pack",
        b"?a=1%2526service=git-receive-pack",
        b"?a=1&amp;service=git-receive-pack",
        b"?a=1?service=git-receive-pack",
        b"??service=git-receive-pack",
        b"?service=git-receive-pack;a=1",
        b"?service=git-upload-pack;a=1",
        b"?service=git%2Dreceive-pack",
        b"?service=git-receive-pack+",
        b"?service=GIT-RECEIVE-PACK",
        b"?service=git_receive_pack",
        b"?service=git-receive-pack=",
        b"?service=a%20b",
    ],
)
def test_a_repeated_or_differently_spelled_parameter_is_ambiguous(query: bytes) -> None:
    assert QueryReading(query).meets(PUSH) is None


@pytest.mark.parametrize("name", [b"dry[run", b"dry%5Brun"])
def test_a_bracket_that_is_not_closed_is_another_spelling_of_punctuation(name: bytes) -> None:
    """PHP makes ``dry_run`` of it."""
    assert QueryReading(b"?" + name + b"=1").meets(((b"dry_run", b"1"),)) is None


@pytest.mark.parametrize("separator", [b"&", b";"])
def test_a_query_with_more_parameters_than_some_parsers_read_is_ambiguous(separator: bytes) -> None:
    """Express, PHP and Tomcat ignore what is behind the thousandth."""
    few, many = b"?" + (b"x" + separator) * 255, b"?" + (b"x" + separator) * 256
    assert QueryReading(few.replace(b";", b"&") + b"service=git-receive-pack").meets(PUSH) is True
    assert QueryReading(many + b"service=git-receive-pack").meets(PUSH) is None
    assert QueryReading(many + b"x").meets(PUSH) is None


@pytest.mark.parametrize(
    ("query", "met"),
    [
        (b"?a=1&b=2", True),
        (b"?b=2&a=1", True),
        (b"?a=1", False),
        (b"?a=1&b=3", False),
        (b"?a=9&b=2&b=2", None),
        (b"?a=1&A=1&b=2", None),
    ],
)
def test_all_conditions_of_a_route_must_be_met(query: bytes, met: bool | None) -> None:
    conditions: Conditions = ((b"a", b"1"), (b"b", b"2"))
    assert QueryReading(query).meets(conditions) is met


@pytest.mark.parametrize(("query", "met"), [(b"?acl", True), (b"?acl=", True), (b"?acl=1", False), (b"?ACL", None)])
def test_a_condition_can_be_an_empty_value(query: bytes, met: bool | None) -> None:
    assert QueryReading(query).meets(((b"acl", b""),)) is met


@pytest.mark.parametrize(
    ("query", "met"),
    [
        (b"?from", True),
        (b"?from=", True),
        (b"?from=library/alpine", True),
        (b"?mount=sha256:00&from=library%2Falpine", True),
        (b"", False),
        (b"?mount=sha256:00&fro=m", False),
        (b"?From=a", None),
        (b"?fr%6Fm=a", None),
        (b"?from[]=a", None),
        (b"?from=a&from=b", None),
        (b"?a=1;from=a", None),
        (b"?a=1?from=a", None),
    ],
)
def test_a_condition_can_be_any_value(query: bytes, met: bool | None) -> None:
    assert QueryReading(query).meets(((b"from", b"*"),)) is met


def test_a_long_query_is_read_in_linear_time() -> None:
    for piece in (b"&", b"a&", b"%25", b"%2525", b";", b"[", b"=", b"A&", b"service&", b"+", b"%ff"):
        QueryReading(b"?" + piece * (60_000 // len(piece))).meets(PUSH)
