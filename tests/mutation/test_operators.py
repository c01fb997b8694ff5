"""Each operator creates its mutants, each mutant differs in one place, and code without effect is not mutated."""

from __future__ import annotations

import pytest

from tests.mutation.operators import OPERATORS, differs, mutants

SAID = {
    "comparison": [("a < b", "a <= b"), ("a is None", "a is not None"), ("a in b", "a not in b"), ("a == b", "a != b")],
    "and, or, not": [("a and b", "(a or b)"), ("a and b", "(b)"), ("a or b or c", "(a or c)"), ("not a", "(a)")],
    "condition": [("1 if a else 2", "1 if (not (a)) else 2"), ("[x for x in y if x]", "[x for x in y if (False)]")],
    "constant": [("5", "6"), ("True", "False"), ("0.5", "1.5")],
    "arithmetic": [("a + b", "(a - b)"), ("a | b", "(a & b)")],
    "call": [
        ("f(x, key=1)", "f(x)"),
        ("asyncio.shield(x)", "x"),
        ("max(a, b)", "a"),
        ("name.lower()", "name"),
    ],
}


@pytest.mark.parametrize(
    ("operator", "before", "after"), [(name, *pair) for name, pairs in SAID.items() for pair in pairs]
)
def test_an_expression_is_changed_in_one_place(operator: str, before: str, after: str) -> None:
    source = f"ü = ({before})\n"
    assert f"ü = ({after})\n" in [one.apply(source) for one in mutants(source, [operator])]


STATEMENTS = {
    "statement left out": ("def f():\n    {}\n", [("raise ValueError", "pass"), ("g()", "pass"), ("x.y = 1", "pass"),
                           ("del x[1]", "pass"), ("x += 1", "pass"), ("return", "pass"), ("await g()", "pass")]),
    "return value": ("def f() -> bool:\n    {}\n", [("return g()", "return True"), ("return g()", "return False")]),
    "guard left out": ("def f():\n    {}\n", [("with lock:\n        g()", "if True:\n        g()")]),
    "order": ("def f():\n    {}\n", [("x = g()\n    h()", "h()\n    x = g()")]),
    "table's row left out": ("T = {}\n", [("{1: a, 2: b}", "{2: b}"), ("(a, b, c)", "(a, c,)")]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "frame", "before", "after"),
    [(name, frame, *pair) for name, (frame, pairs) in STATEMENTS.items() for pair in pairs],
)
def test_a_statement_is_removed_or_changed(operator: str, frame: str, before: str, after: str) -> None:
    frame = frame.replace("def f", "async def f") if "await" in before else frame
    source = frame.replace("{}", before)
    assert frame.replace("{}", after) in [one.apply(source) for one in mutants(source, [operator])]


def test_an_except_clause_is_narrowed() -> None:
    source = "try:\n    f()\nexcept (A, B):\n    g()\nexcept BaseException:\n    h()\n"
    texts = [one.apply(source) for one in mutants(source, ["guard left out"])]
    assert source.replace("(A, B)", "(A,)") in texts
    assert source.replace("(A, B)", "(B,)") in texts
    assert source.replace("BaseException", "Exception") in texts


@pytest.mark.parametrize(
    "source",
    [
        '"""A module."""\n',
        "from a import b\nimport c\n",
        "assert 1 < 2\n",
        "def f(x: Literal[1]) -> Literal[2]: ...\n",
        "x: Annotated[int, 5]\n",
        "if TYPE_CHECKING:\n    x = 1\n",
        "_log.warning(1, a=2)\n",
        'def f():\n    """Not 5."""\n',
    ],
)
def test_code_without_effect_is_not_mutated(source: str) -> None:
    assert mutants(source) == []


def test_statements_are_swapped_only_if_the_second_does_not_depend_on_the_first() -> None:
    source = "def f():\n    x = g()\n    h(x)\n"
    assert mutants(source, ["order"]) == []


def test_every_mutant_has_its_line_and_is_unique() -> None:
    source = "def f(a, b):\n    if a < 1 and not b:\n        raise ValueError\n    return a\n"
    found = mutants(source)
    texts = [one.apply(source) for one in found]
    assert len(set(texts)) == len(texts) > 8
    assert {one.line for one in found} == {2, 3}
    assert all(differs(one, source) for one in found)
    assert {one.operator for one in found} <= set(OPERATORS)


def test_an_edit_that_is_invalid_or_without_effect_is_recognised() -> None:
    (one,) = mutants("x = 5\n")
    assert differs(one, "x = 5\n")
    assert not differs(one, "x = (\n\n")
