"""Mutation operators: each reads the syntax tree and proposes edits of the text; a mutant differs in one place.

Code without effect on behaviour is not mutated: annotations, docstrings, log lines, texts, ``assert`` and code for type
checkers.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """One edit of a source text: bytes ``start`` to ``end`` become ``text``."""

    operator: str
    line: int
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        raw = source.encode()
        return (raw[: self.start] + self.text.encode() + raw[self.end :]).decode()


_COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
_UNWRAPPED: Final = {"shield", "sorted", "min", "max"}
_STRIPPED: Final = {"lower", "casefold", "strip", "upper", "rstrip", "lstrip"}
_FEW: Final = 12
"""From a larger table only some entries are removed, so that tables do not outnumber the code."""
Found = Iterator[tuple[ast.AST, str]]
"""The replaced part, and the new text."""


class _Reader:
    """A source with its tree, without the parts that are not mutated."""

    def __init__(self, source: str) -> None:
        self.raw = source.encode()
        self._starts = [0]
        for line in self.raw.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self.tree = ast.parse(source)
        self.nodes = list(self._walk(self.tree))

    def _walk(self, node: ast.AST) -> Iterator[ast.AST]:
        if _is_no_rule(node):
            return
        yield node
        skipped = {
            id(child)
            for name in ("annotation", "returns", "type_params")
            if isinstance(child := getattr(node, name, None), ast.AST)
        }
        for child in ast.iter_child_nodes(node):
            if id(child) not in skipped:
                yield from self._walk(child)

    def span(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.expr | ast.stmt | ast.keyword | ast.arg | ast.excepthandler)
        assert node.end_lineno is not None and node.end_col_offset is not None
        return (
            self._starts[node.lineno - 1] + node.col_offset,
            self._starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.raw[start:end].decode()


def _is_no_rule(node: ast.AST) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Assert():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="_log")))):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.FunctionDef(name="__repr__"):
            return True
        case ast.Call(func=ast.Name(id="field" | "dataclass"), args=[]):
            return True
    return False


def _comparisons(of: _Reader) -> Found:
    for node in of.nodes:
        if isinstance(node, ast.Compare):
            for position, operator in enumerate(node.ops):
                if other := _COMPARISONS.get(type(operator)):
                    ops = [*node.ops[:position], other(), *node.ops[position + 1 :]]
                    yield node, ast.unparse(ast.Compare(node.left, ops, node.comparators))


def _booleans(of: _Reader) -> Found:
    for node in of.nodes:
        if isinstance(node, ast.BoolOp):
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield node, f"({ast.unparse(ast.BoolOp(other, node.values))})"
            for position in range(len(node.values)):
                left = [*node.values[:position], *node.values[position + 1 :]]
                yield node, f"({ast.unparse(ast.BoolOp(node.op, left) if len(left) > 1 else left[0])})"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node, f"({ast.unparse(node.operand)})"


def _conditions(of: _Reader) -> Found:
    for node in of.nodes:
        tests: list[ast.expr] = []
        if isinstance(node, ast.If | ast.IfExp):
            tests = [node.test]
            yield node.test, "(True)"
        elif isinstance(node, ast.comprehension):
            tests = node.ifs
        for test in tests:
            yield test, "(False)"
            yield test, f"(not ({ast.unparse(test)}))"


def _numbers(of: _Reader) -> Found:
    for node in of.nodes:
        if isinstance(node, ast.Constant):
            if isinstance(node.value, bool):
                yield node, str(not node.value)
            elif isinstance(node.value, int | float):
                yield node, repr(node.value + 1)


def _arithmetic(of: _Reader) -> Found:
    for node in of.nodes:
        if isinstance(node, ast.BinOp) and (other := _ARITHMETIC.get(type(node.op))):
            yield node, f"({ast.unparse(ast.BinOp(node.left, other(), node.right))})"


def _removed(of: _Reader) -> Found:
    """Statements with an effect and without a result."""
    for node in of.nodes:
        match node:
            case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise() | ast.AugAssign() | ast.Delete():
                yield node, "pass"
            case ast.Continue() | ast.Break() | ast.Return(value=None):
                yield node, "pass"
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield node, "pass"


def _returned(of: _Reader) -> Found:
    for function in of.nodes:
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or function.returns is None:
            continue
        returns = ast.unparse(function.returns)
        for node in ast.walk(function):
            if not isinstance(node, ast.Return) or node.value is None or isinstance(node.value, ast.Constant):
                continue
            if returns == "bool":
                yield node, "return True"
                yield node, "return False"
            elif returns.endswith("| None"):
                yield node, "return None"


def _calls(of: _Reader) -> Found:
    """Remove an argument, or replace a call by its argument."""
    for node in of.nodes:
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _UNWRAPPED and node.args:
            yield node, of.text(node.args[0])
        elif name in _STRIPPED and isinstance(node.func, ast.Attribute) and not node.args:
            yield node, of.text(node.func.value)
        if name in {"dataclass", "field", "Field", "TypeVar"}:
            continue
        for position, keyword in enumerate(node.keywords):
            if keyword.arg is not None:
                left = [*node.keywords[:position], *node.keywords[position + 1 :]]
                yield node, ast.unparse(ast.Call(node.func, node.args, left))


def _guards(of: _Reader) -> Found:
    """Remove a context that is entered for its effect, or narrow the caught errors."""
    for node in of.nodes:
        if isinstance(node, ast.With | ast.AsyncWith):
            if all(item.optional_vars is None for item in node.items) and node.body:
                yield from _headless(of, node)
        elif isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Tuple):
            for position in range(len(node.type.elts)):
                left = [*node.type.elts[:position], *node.type.elts[position + 1 :]]
                yield node.type, ast.unparse(ast.Tuple(left, ast.Load()))
        elif isinstance(node, ast.ExceptHandler) and ast.unparse(node.type or ast.Pass()) == "BaseException":
            assert node.type is not None
            yield node.type, "Exception"


class _Head(ast.expr):
    """The part of a compound statement before its body."""


def _headless(of: _Reader, node: ast.With | ast.AsyncWith) -> Found:
    body = node.body[0]
    if body.lineno == node.lineno:
        return
    start, _ = of.span(node)
    last = node.items[-1].context_expr
    _, end = of.span(last)
    colon = of.raw.index(b":", end)
    head = _Head()
    head.lineno, head.col_offset = node.lineno, node.col_offset
    line = of.raw.count(b"\n", 0, colon) + 1
    head.end_lineno, head.end_col_offset = line, colon + 1 - (of.raw.rfind(b"\n", 0, colon) + 1)
    assert of.span(head)[0] == start
    yield head, "if True:"


def _entries(of: _Reader) -> Found:
    """Remove a row of a table at the top level of a module or class."""
    for node in of.nodes:
        if not isinstance(node, ast.Module | ast.ClassDef):
            continue
        for statement in node.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                for inner in ast.walk(statement.value):
                    yield from _without_one(of, inner)


def _without_one(of: _Reader, node: ast.AST) -> Found:
    if isinstance(node, ast.Dict):
        rows = [
            f"**{of.text(value)}" if key is None else f"{of.text(key)}: {of.text(value)}"
            for key, value in zip(node.keys, node.values, strict=True)
        ]
        marks = ("{", "}")
    elif isinstance(node, ast.Set | ast.List | ast.Tuple):
        rows = [of.text(one) for one in node.elts]
        marks = {"Set": ("{", "}"), "List": ("[", "]"), "Tuple": ("(", ",)")}[type(node).__name__]
    else:
        return
    if len(rows) < (3 if isinstance(node, ast.Tuple) else 2):
        return
    step = max(1, len(rows) // _FEW)
    for position in range(0, len(rows), step):
        left = [*rows[:position], *rows[position + 1 :]]
        yield node, marks[0] + ", ".join(left) + marks[1]


class _Pair(ast.stmt):
    """Two statements, one after the other."""


def _order(of: _Reader) -> Found:
    """Swap two neighbouring statements with calls, if the second does not use names of the first."""
    for node in of.nodes:
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if not isinstance(body, list) or isinstance(node, ast.Module | ast.ClassDef):
                continue
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                continue
            for one, other in pairwise(body):
                if _swappable(one) and _swappable(other) and not _bound(one) & _used(other):
                    pair = _Pair()
                    pair.lineno, pair.col_offset = one.lineno, one.col_offset
                    pair.end_lineno, pair.end_col_offset = other.end_lineno, other.end_col_offset
                    yield pair, f"{of.text(other)}\n{' ' * one.col_offset}{of.text(one)}"


def _swappable(node: ast.stmt) -> bool:
    simple = isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr) and not _is_no_rule(node)
    return simple and any(isinstance(inner, ast.Call | ast.Await) for inner in ast.walk(node))


def _bound(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


def _used(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


OPERATORS: Final[dict[str, Callable[[_Reader], Found]]] = {
    "comparison": _comparisons,
    "and, or, not": _booleans,
    "condition": _conditions,
    "constant": _numbers,
    "arithmetic": _arithmetic,
    "statement left out": _removed,
    "return value": _returned,
    "call": _calls,
    "guard left out": _guards,
    "table's row left out": _entries,
    "order": _order,
}


def mutants(source: str, only: Iterable[str] = ()) -> list[Mutant]:
    """All mutants of a module, without duplicates, in the order of the text; a few are not valid Python."""
    of = _Reader(source)
    wanted: Sequence[str] = tuple(only) or tuple(OPERATORS)
    found: dict[tuple[int, int, str], Mutant] = {}
    for name in wanted:
        for node, text in OPERATORS[name](of):
            start, end = of.span(node)
            line = of.raw.count(b"\n", 0, start) + 1
            one = Mutant(operator=name, line=line, start=start, end=end, text=text)
            found.setdefault((start, end, text), one)
    return sorted(found.values(), key=lambda one: (one.start, one.end, one.text))


def differs(one: Mutant, source: str) -> bool:
    """Whether the mutant is a valid program that differs from the source."""
    try:
        return ast.dump(ast.parse(one.apply(source))) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False
