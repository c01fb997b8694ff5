"""Parsing YAML: data, lines, and problems."""

import time

import pytest

from proxy.settings.sources.document import parse, scalar


def test_plain_values_follow_yaml_1_2() -> None:
    text = "a: 10:30\nb: no\nc: 007\nd: [1.5, ~, true, '1', 0x1F, 2024-01-01, =, .5]\ne: !!str 12\nf:\ng: <<\n404: x\n"
    document = parse(text)
    assert document.problems == ()
    assert document.data == {
        "a": "10:30",
        "b": "no",
        "c": 7,
        "d": [1.5, None, True, "1", 31, "2024-01-01", "=", 0.5],
        "e": "12",
        "f": None,
        "g": "<<",
        "404": "x",
    }


def test_every_value_and_key_has_its_line() -> None:
    origins = parse("a:\n  b: 1\n  c:\n    - x\n    - {y: 2,\n       z: 3}\n").origins
    lines = {loc: origin.line for loc, origin in origins.values.items()}
    assert lines[("a", "b")] == 2
    assert lines[("a", "c", 0)] == 4
    assert lines[("a", "c", 1, "z")] == 6
    assert origins.of(("a", "c"), key=True).line == 3
    assert origins.of(("a", "c", 1, "missing")).line == 5


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: b: c\n", 1, "is not YAML at column 5: mapping values are not allowed here"),
        ("a: 1\n\tb: 2\n", 2, "is not YAML at column 1:"),
        ("a: [1, 2\nb: 3\n", 2, "is not YAML at column 2:"),
        ("a: *x\n", 1, "is not YAML at column 4: found undefined alias"),
        ("a: 1\n---\nb: 2\n", 2, "is not YAML at column 1:"),
        ("a: 1\nb: 'x", 2, "is not YAML at column"),
        ("a: 1\nb: \x07\n", 2, "holds a control character"),
        (b"a: 1\nb: \xff\n", 2, "is not UTF-8 text"),
    ],
)
def test_a_syntax_error_names_its_line_and_column(text: str | bytes, line: int, message: str) -> None:
    [problem] = parse(text).problems
    assert problem.line == line
    assert message in problem.message


def test_a_duplicate_name_is_a_problem_at_its_second_line() -> None:
    [problem] = parse("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n").problems
    assert (problem.line, problem.path) == (5, "b.c")
    assert problem.message == "is written twice, first in line 3"


def test_anchors_and_merge_keys_work_and_own_values_have_precedence() -> None:
    document = parse("base: &b { x: 1, y: 2 }\na:\n  <<: *b\n  y: 3\nc: { <<: [*b, { z: 4 }] }\nd: *b\n")
    assert document.problems == ()
    assert document.data == {
        "base": {"x": 1, "y": 2},
        "a": {"y": 3, "x": 1},
        "c": {"x": 1, "y": 2, "z": 4},
        "d": {"x": 1, "y": 2},
    }
    assert document.origins.of(("a", "y")).line == 4
    assert document.origins.of(("d",)).line == 6


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']\n",
        "a: !custom x\n",
        "a: !custom {x: 1}\n",
        "a: !!int x\n",
        "a: &a [*a]\n",
        "a: &a { <<: *a }\n",
        "a: { <<: 1 }\n",
        "? [1]\n: 2\n",
    ],
)
def test_unsupported_yaml_is_a_problem(text: str) -> None:
    [problem] = parse(text).problems
    assert problem.line == 1


def test_the_growth_by_aliases_of_aliases_is_bounded() -> None:
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))
    started = time.thread_time()
    [problem] = parse(f"a0: &a0 [x]\n{levels}\n").problems
    assert "grows beyond" in problem.message
    assert time.thread_time() - started < 30


def test_deep_nesting_is_a_problem_and_not_a_crash() -> None:
    [problem] = parse("[" * 5000).problems
    assert problem.message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("true", True),
        ("null", None),
        ("", ""),
        ("{}", {}),
        ('["a", "b"]', ["a", "b"]),
        ('{"a": [1]}', {"a": [1]}),
        ("[::]:8080", "[::]:8080"),
        ("10s", "10s"),
        ("a: b: c", "a: b: c"),
        ("*:*", "*:*"),
    ],
)
def test_a_variable_is_yaml_if_valid_and_text_otherwise(text: str, value: object) -> None:
    assert scalar(text) == value
