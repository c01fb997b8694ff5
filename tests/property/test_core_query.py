"""A condition on the query is decided only where every usual way to read a query gives the same result."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import parse_qsl, unquote

from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.core.request.query import QueryReading

Pairs = list[tuple[str, str]]
CONDITIONS = ((b"service", b"git-receive-pack"),)

NAMES = (
    "service", "service", "Service", "SERVICE", "s%65rvice", "%2573ervice", "service%00", "service[]", "service%5B0%5D",
    "+service", "%20service", "service+", "xservice", "services", "serv%ffice", "%EF%BD%93ervice", "servi%C5%BFe", "x",
    "amp;service", "x;service", "x?service", "x=1%26service", "x=1%2526service", "x=1%3Bservice", "", "y%3Dservice",
)  # fmt: skip
VALUES = (
    "git-receive-pack", "git-receive-pack", "git-upload-pack", "git-upload-pack", "GIT-receive-pack", "", "1", "%ff",
    "git%2Dreceive-pack", "git%252Dreceive-pack", "git-receive-pack+", "%20git-receive-pack", "git-receive-pack;x",
    "git-receive-pack%26x", "git-upload-pack%26service=git-receive-pack", "x;service=git-receive-pack",
    "git-receive-pack=",
)  # fmt: skip
parameters = st.tuples(
    st.sampled_from(NAMES), st.sampled_from(("=", "=", "=", "=", "", "%3D")), st.sampled_from(VALUES)
)
queries = st.lists(parameters.map("".join), max_size=3).map("&".join)


def plain(query: str) -> Pairs:
    return [(name, value) for name, _, value in (part.partition("=") for part in query.split("&"))]


def by_html(query: str) -> Pairs:
    return parse_qsl(query, keep_blank_values=True)


def by_semicolons(query: str) -> Pairs:
    return parse_qsl(query.replace(";", "&"), keep_blank_values=True)


def without_case(query: str) -> Pairs:
    return [(name.casefold(), value) for name, value in by_html(query)]


def decoded_before_split(query: str) -> Pairs:
    return parse_qsl(unquote(query), keep_blank_values=True)


def decoded_twice(query: str) -> Pairs:
    return [(unquote(name), unquote(value)) for name, value in by_html(query)]


def as_php(query: str) -> Pairs:
    """White space before a name is dropped, a name ends at NUL or "[", and "." and " " in it become "_"."""
    pairs = []
    for name, value in by_html(query):
        short = re.split(r"[\0\[]", name.lstrip(" "))[0]
        pairs.append((re.sub("[ .]", "_", short), value))
    return pairs


def trimmed(query: str) -> Pairs:
    return [(name.strip(), value.strip()) for name, value in by_html(query)]


def after_the_last_question_mark(query: str) -> Pairs:
    return by_html(query.rpartition("?")[2])


READERS: tuple[Callable[[str], Pairs], ...] = (
    plain, by_html, by_semicolons, without_case, decoded_before_split, decoded_twice, as_php, trimmed,
    after_the_last_question_mark,
)  # fmt: skip


def beliefs(query: str) -> Iterable[bool]:
    """Whether the parameter has the value for each kind of backend, by its first and by its last occurrence."""
    for reader in READERS:
        values = [value for name, value in reader(query) if name == "service"]
        for value in values[:1] + values[-1:] or [""]:
            yield value == "git-receive-pack"
            yield value.casefold() == "git-receive-pack"


@given(queries)
@settings(max_examples=1500)
@example("")
@example("service=git-receive-pack")
@example("x=1&service=git-receive-pack&y")
@example("x=%26service=git-receive-pack")
@example("service=git-receive-pack&service=git-upload-pack")
@example("service=git-receive-pack&x?y")
@example("service=git-receive-pack&x%3Fy")
def test_what_is_decided_is_what_every_kind_of_backend_reads(query: str) -> None:
    met = QueryReading(f"?{query}".encode()).meets(CONDITIONS)
    if met is not None:
        assert set(beliefs(query)) == {met}


@given(queries)
@settings(max_examples=1500)
@example("service")
@example("x=%26service=1")
def test_whether_a_parameter_is_there_is_what_every_kind_of_backend_reads(query: str) -> None:
    met = QueryReading(f"?{query}".encode()).meets(((b"service", b"*"),))
    if met is not None:
        assert {any(name == "service" for name, _ in reader(query)) for reader in READERS} == {met}


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.from_regex(r"[A-Za-z0-9._~%-]{0,8}", fullmatch=True)
        ),
        max_size=6,
        unique_by=lambda pair: pair[0],
    ),
    st.sampled_from(["git-receive-pack", "git-upload-pack", "", None]),
)
def test_a_plain_query_is_never_ambiguous(others: Pairs, value: str | None) -> None:
    parts = [f"{name}={given}" for name, given in others if name != "service" and "%" not in given]
    if value is not None:
        parts.insert(len(parts) // 2, f"service={value}")
    query = "&".join(parts)
    assert QueryReading(f"?{query}".encode()).meets(CONDITIONS) is (value == "git-receive-pack")


@given(st.binary(max_size=60))
def test_no_query_makes_the_reading_fail(query: bytes) -> None:
    assert QueryReading(b"?" + query).meets(CONDITIONS) in (True, False, None)
