"""No compiled module reads an attribute that was not None, after a call that may have set it to None.

mypy assumes that a call changes no attribute: ``if self.exchange is not None: self.end(); self.exchange …`` passes.
In Python the second read gives None. Compiled by mypyc it is a cast to the type that mypy assumes, and so a TypeError,
even in a comparison with None (decision 0004). Code that needs the value after a call keeps it in a variable, or gets
it in another way.

The analysis is simple: it follows each function from top to bottom and assumes that every call clears every attribute,
except for builtins, pure functions, and methods of bytes, strings and clocks.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.support.builds import COMPILED, ROOT

SOURCES = {module: (ROOT / f"{module.replace('.', '/')}.py").read_text() for module in COMPILED}
BUILTINS = frozenset(
    {
        "all", "any", "bool", "bytes", "cast", "encode_chunks", "frozenset", "int", "isinstance", "len", "list", "map",
        "max", "min", "range", "set", "sorted", "str", "sum", "tuple",
    }
)  # fmt: skip
METHODS = frozenset(
    {
        "append", "decode", "encode", "endswith", "extend", "find", "get", "isdigit", "is_closing", "join", "lower",
        "monotonic", "monotonic_ns", "partition", "pop", "replace", "split", "startswith", "strip", "time",
    }
)  # fmt: skip


def may_be_none(sources: dict[str, str]) -> set[str]:
    """The attributes whose type includes None and that are assigned outside constructors."""
    declared, assigned = set(), set()
    for source in sources.values():
        for function in functions(ast.parse(source)):
            given = {
                each.arg for each in function.args.args if each.annotation and "None" in ast.unparse(each.annotation)
            }
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in given:
                    declared |= {each.attr for each in node.targets if isinstance(each, ast.Attribute)}
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
                    if "None" in ast.unparse(node.annotation):
                        declared.add(node.target.attr)
                elif isinstance(node, ast.Assign) and function.name != "__init__":
                    targets = [each for target in node.targets for each in ast.walk(target)]
                    assigned |= {each.attr for each in targets if isinstance(each, ast.Attribute)}
    return declared & assigned


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def path_of(node: ast.expr) -> str | None:
    """``self.exchange`` for an expression of that form; None for all others."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := path_of(node.value)) is not None:
        return f"{before}.{node.attr}"
    return None


State = dict[str, bool]
"""The attributes that are known not to be None; the value is true if a call came after the check."""


def joined(first: State | None, second: State | None) -> State | None:
    """The state where two branches join; None stands for a branch that does not reach the end."""
    if first is None or second is None:
        return second if first is None else first
    return {path: first[path] or second[path] for path in first.keys() & second.keys()}


class Reading:
    """Analyses one function from top to bottom."""

    def __init__(self, attributes: set[str]) -> None:
        self.attributes = attributes
        self.state: State | None = {}
        self.found: list[str] = []

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if self.state is None:
                return
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Return | ast.Raise | ast.Continue | ast.Break):
            self.parts(node)
            self.state = None
        elif isinstance(node, ast.If | ast.While):
            before = self.copy()
            self.expression(node.test)
            otherwise = self.known_if(node.test, False)
            self.state = self.known_if(node.test, True)
            self.block(node.body)
            if isinstance(node, ast.While) and self.state is not None:
                self.state = joined(before, self.state)
                self.expression(node.test)
                self.state = self.known_if(node.test, True)
                self.block(node.body)
            after, self.state = self.state, otherwise
            self.block(node.orelse)
            self.state = joined(after, self.state)
        elif isinstance(node, ast.For | ast.AsyncFor):
            self.expression(node.iter)
            before = self.copy()
            self.block(node.body)
            self.state = joined(before, self.state)
            self.block([*node.body, *node.orelse])
            self.state = joined(before, self.state)
        elif isinstance(node, ast.Try):
            before = {path: True for path in self.copy()}
            self.block(node.body)
            ways = [self.state]
            for handler in node.handlers:
                self.state = dict(before)
                self.block(handler.body)
                ways.append(self.state)
            self.state = None
            for way in ways:
                self.state = joined(self.state, way)
            if self.state is None:
                self.state = before
                self.block(node.finalbody)
                self.state = None
            else:
                self.block([*node.orelse, *node.finalbody])
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                self.expression(item.context_expr)
            self.block(node.body)
        elif isinstance(node, ast.Assert):
            self.expression(node.test)
            self.state = self.known_if(node.test, True)
        elif isinstance(node, ast.Assign):
            self.expression(node.value)
            for target in node.targets:
                self.assign(target, node.value)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.parts(node)

    def assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=True):
                self.assign(one, its)
            return
        path = path_of(target)
        if path is None or self.state is None:
            return
        self.state = {known: stale for known, stale in self.state.items() if not f"{known}.".startswith(f"{path}.")}
        # A variable may be None, and then mypy narrows nothing.
        if isinstance(target, ast.Attribute) and target.attr in self.attributes and not isinstance(value, ast.Constant):
            self.state[path] = False

    def expression(self, node: ast.expr) -> None:
        if isinstance(node, ast.BoolOp):
            before = self.copy()
            for value in node.values:
                self.expression(value)
                self.state = self.known_if(value, isinstance(node.op, ast.And))
            self.state = {path: (self.state or {}).get(path, stale) or stale for path, stale in before.items()}
        elif isinstance(node, ast.IfExp):
            self.expression(node.test)
            otherwise = self.known_if(node.test, False)
            self.state = self.known_if(node.test, True)
            self.expression(node.body)
            after, self.state = self.state, otherwise
            self.expression(node.orelse)
            self.state = joined(after, self.state)
        elif not isinstance(node, ast.Lambda):
            self.parts(node)
            if isinstance(node, ast.Attribute):
                path = path_of(node)
                if isinstance(node.ctx, ast.Load) and path is not None and (self.state or {}).get(path):
                    self.found.append(f"{node.lineno}: {path}")
            elif isinstance(node, ast.Await) or (isinstance(node, ast.Call) and not harmless(node)):
                self.state = dict.fromkeys(self.copy(), True)

    def parts(self, node: ast.AST) -> None:
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.expr):
                self.expression(part)
            else:
                self.parts(part)

    def copy(self) -> State:
        return dict(self.state or {})

    def known_if(self, test: ast.expr, true: bool) -> State:
        """The state after ``test`` was true, or false."""
        return self.copy() | dict.fromkeys(self.not_none(test, true), False)

    def not_none(self, test: ast.expr, true: bool) -> set[str]:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self.not_none(test.operand, not true)
        if isinstance(test, ast.BoolOp):
            if isinstance(test.op, ast.And) is not true:
                return set()
            return {path for value in test.values for path in self.not_none(value, true)}
        tested: ast.expr | None = None
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and ast.unparse(test.comparators[0]) == "None":
            tested = test.left if isinstance(test.ops[0], ast.IsNot) is true else None
        elif isinstance(test, ast.Call) and ast.unparse(test.func) == "isinstance":
            tested = test.args[0] if true else None
        elif isinstance(test, ast.Attribute):
            tested = test if true else None
        path = path_of(tested) if isinstance(tested, ast.Attribute) else None
        return {path} if path is not None and path.rpartition(".")[2] in self.attributes else set()


def harmless(call: ast.Call) -> bool:
    """Whether a call clears no attribute."""
    if isinstance(call.func, ast.Name):
        return call.func.id in BUILTINS
    return isinstance(call.func, ast.Attribute) and call.func.attr in METHODS


def read_again(source: str, attributes: set[str]) -> list[str]:
    """The line and attribute of each read that may give None although mypy assumes otherwise."""
    found = []
    for function in functions(ast.parse(source)):
        reading = Reading(attributes)
        reading.block(function.body)
        found += [f"{function.name}:{each}" for each in reading.found]
    return found


ATTRIBUTES = may_be_none(SOURCES)


@pytest.mark.parametrize("module", COMPILED)
def test_no_attribute_is_read_again_after_a_call_that_may_clear_it(module: str) -> None:
    assert read_again(SOURCES[module], ATTRIBUTES) == []


WRONG = {
    "assigned": "self.x = y\nself.end()\nif self.x is not y: return",
    "compared": "if self.x is None: return\nself.end()\nself.x.go()",
    "asserted": "assert self.x is not None\nself.end()\nreturn self.x",
    "true": "if self.x and self.end() and self.x: return",
    "in a loop": "if self.x is None: return\nwhile self.x.more:\n    self.end()",
    "awaited": "if y.x is not None:\n    await z\n    y.x.go()",
    "in an argument": "if y.x is not None:\n    y.go(y.end(), y.x)",
    "after a failure": "assert self.x is not None\ntry:\n    self.end()\nexcept OSError:\n    self.x.go()",
}
RIGHT = {
    "read once": "if self.x is not None:\n    self.x.go()\n    self.end()",
    "kept": "x = self.x\nif x is None: return\nself.end()\nx.go()",
    "checked again": "if self.x is not None: self.end()\nif self.x is not None: self.x.go()",
    "cleared": "self.end()\nself.x = None\nself.end()\nif self.x is not None: return",
    "harmless": "if self.x is None: return\nn = len(y) + time.monotonic_ns()\nself.x.go()",
    "left": "if self.x is not None:\n    self.end()\n    return\nself.x",
    "another": "if self.x is not None:\n    self.end()\n    self.z.go()",
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_a_read_after_a_call_is_found(body: str) -> None:
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    assert read_again(f"async def f(self, y, z):\n{lines}", {"x"})


@pytest.mark.parametrize("body", RIGHT.values(), ids=RIGHT)
def test_other_reads_are_not_found(body: str) -> None:
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    assert read_again(f"async def f(self, y, z):\n{lines}", {"x"}) == []
