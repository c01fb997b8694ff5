"""Parsing the YAML file into plain data, with the line of every value and key.

PyYAML parses the file into nodes. This module builds the data from the nodes, because PyYAML's constructor discards the
lines, keeps only the last of two equal keys, and reads ``10:30`` as a number and ``no`` as false. Plain scalars follow
the core schema of YAML 1.2 (§10.3.2). Anchors and merge keys work; tags outside the core schema are problems.
"""

import re
from dataclasses import dataclass, field
from typing import Final, TypeAlias, Union

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from proxy.core.errors import ConfigurationProblem
from proxy.settings.problems import Loc, ValueOrigin, ValueOrigins, path_of
from proxy.settings.values import quoted

Tree: TypeAlias = Union[bool, int, float, str, list["Tree"], dict[str, "Tree"], None]  # noqa: UP007 - "|" cannot take names in quotes

_TAG: Final = "tag:yaml.org,2002:"
_MAX_VALUES: Final = 200_000
"""Limits the growth by aliases of aliases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class YamlDocument:
    """The data of a file, the origins of its values, and its YAML problems."""

    data: Tree
    origins: ValueOrigins
    problems: tuple[ConfigurationProblem, ...]


class _CoreSchema(BaseResolver):
    """The scalars of YAML 1.2's core schema, and the merge key."""


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("merge", r"<<", ["<"]),
):
    _CoreSchema.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


class _Nodes(Reader, Scanner, Parser, Composer, _CoreSchema):
    def __init__(self, stream: str) -> None:
        Reader.__init__(self, stream)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _CoreSchema.__init__(self)


def parse(text: str | bytes) -> YamlDocument:
    """Parse one YAML document. Never raises for its content: see ``problems``, with at most one syntax error."""
    origins = ValueOrigins()
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        root = _Nodes(text).get_single_node()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problem = ConfigurationProblem(path="", line=line, message="is not UTF-8 text")
        return YamlDocument(data=None, origins=origins, problems=(problem,))
    except ReaderError as error:
        line = str(text)[: error.position].count("\n") + 1
        problem = ConfigurationProblem(path="", line=line, message="holds a control character")
        return YamlDocument(data=None, origins=origins, problems=(problem,))
    except yaml.MarkedYAMLError as error:
        return YamlDocument(data=None, origins=origins, problems=(_bad_syntax(error),))
    except RecursionError:
        problem = ConfigurationProblem(path="", line=None, message="is nested too deeply")
        return YamlDocument(data=None, origins=origins, problems=(problem,))
    if root is None:
        return YamlDocument(data={}, origins=origins, problems=())
    builder = _Builder(origins=origins)
    try:
        data = builder.build(root, ())
    except _TooLarge:
        problem = ConfigurationProblem(
            path="", line=None, message=f"grows beyond {_MAX_VALUES} values through its aliases"
        )
        return YamlDocument(data=None, origins=origins, problems=(problem,))
    return YamlDocument(data=data, origins=origins, problems=tuple(builder.problems))


def scalar(text: str) -> Tree:
    """The value of an environment variable: parsed as JSON or YAML if it is valid, otherwise the text itself.

    ``[::]:8080`` looks like a list but is not valid YAML, so it stays text.
    """
    document = parse(text)
    return text if document.problems or (document.data == {} and text.strip() != "{}") else document.data


class _TooLarge(Exception):
    """The document has more values than any configuration needs."""


@dataclass(kw_only=True, slots=True)
class _Builder:
    origins: ValueOrigins
    problems: list[ConfigurationProblem] = field(default_factory=list)
    _open: set[int] = field(default_factory=set)
    _count: int = 0

    def build(self, node: Node, loc: Loc, key_line: int = 0) -> Tree:
        self._count += 1
        if self._count > _MAX_VALUES:
            raise _TooLarge
        # For an alias, use the line of the alias; its node has the line of the anchor.
        line = max(node.start_mark.line + 1, key_line)
        self.origins.values[loc] = ValueOrigin(line=line)
        if isinstance(node, ScalarNode):
            return self._scalar(node, loc, line)
        if id(node) in self._open:
            self._add(loc, line, "contains itself through an alias")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, loc, line)
            if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
                return [self.build(item, (*loc, index), 0) for index, item in enumerate(node.value)]
        finally:
            self._open.discard(id(node))
        self._unknown_tag(node, loc, line)
        return None

    def _mapping(self, node: MappingNode, loc: Loc, line: int) -> Tree:
        if node.tag != f"{_TAG}map":
            self._unknown_tag(node, loc, line)
            return None
        data: dict[str, Tree] = {}
        lines: dict[str, int] = {}
        merged: list[MappingNode] = []
        for key, value in node.value:
            key_line = key.start_mark.line + 1
            if key.tag == f"{_TAG}merge":
                merged += self._merge_sources(value, loc, key_line)
            elif not isinstance(key, ScalarNode):
                self._add(loc, key_line, "a name must be text, not a list or a section")
            elif key.value in lines:
                self._add((*loc, key.value), key_line, f"is written twice, first in line {lines[key.value]}")
            else:
                below = (*loc, key.value)
                lines[key.value] = key_line
                self.origins.keys[below] = ValueOrigin(line=key_line)
                data[key.value] = self.build(value, below, key_line)
        for source in merged:
            for name, tree in self._merged(source, loc, line).items():
                data.setdefault(name, tree)
        return data

    def _merge_sources(self, node: Node, loc: Loc, line: int) -> list[MappingNode]:
        nodes = node.value if isinstance(node, SequenceNode) else [node]
        found = [each for each in nodes if isinstance(each, MappingNode)]
        if len(found) != len(nodes):
            self._add(loc, line, "a merge key (<<) takes an alias of a section, or a list of them")
        return found

    def _merged(self, source: MappingNode, loc: Loc, line: int) -> dict[str, Tree]:
        """The values of a merged section; values that the section itself has keep their own origin."""
        if id(source) in self._open:
            self._add(loc, line, "contains itself through an alias")
            return {}
        kept_values, kept_keys = dict(self.origins.values), dict(self.origins.keys)
        tree = self.build(source, loc)
        self.origins.values.update(kept_values)
        self.origins.keys.update(kept_keys)
        return tree if isinstance(tree, dict) else {}

    def _scalar(self, node: ScalarNode, loc: Loc, line: int) -> Tree:
        kind = node.tag.removeprefix(_TAG)
        text: str = node.value
        try:
            if kind in ("str", "merge"):
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text, 10 if text.lstrip("+-").isdigit() else 0)
            if kind == "float":
                return float(text)
        except (ValueError, KeyError):
            self._add(loc, line, "does not fit the type that its tag names")
            return None
        self._unknown_tag(node, loc, line)
        return None

    def _unknown_tag(self, node: Node, loc: Loc, line: int) -> None:
        self._add(loc, line, f"the tag {quoted(node.tag)} is not supported; write a plain value")

    def _add(self, loc: Loc, line: int, message: str) -> None:
        self.problems.append(ConfigurationProblem(path=path_of(loc), line=line, message=message))


def _bad_syntax(error: yaml.MarkedYAMLError) -> ConfigurationProblem:
    mark = error.problem_mark or error.context_mark
    why = " ".join(part for part in (error.context and f"{error.context},", error.problem) if part)
    if mark is None:
        return ConfigurationProblem(path="", line=None, message=f"is not YAML: {why}")
    return ConfigurationProblem(path="", line=mark.line + 1, message=f"is not YAML at column {mark.column + 1}: {why}")
