"""The JSON Schema of the configuration (draft 2020-12), for editors and programs that generate configurations.

The description of a setting is the docstring under its field. This module reads it from the source on demand, because
pydantic's ``use_attribute_docstrings`` reads it at import: 40 ms for every process, including workers.
"""

import ast
import inspect
from itertools import chain, pairwise
from typing import Any

from proxy.settings import model
from proxy.settings.sections import cors, listeners, routes, upstreams

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of a configuration file. It lacks the rules between fields, which ``patgate check`` checks."""
    schema = model.Settings.model_json_schema(mode="validation")
    meanings = _meanings()
    for name, section in {"Settings": schema, **schema["$defs"]}.items():
        for field, described in section.get("properties", {}).items():
            described["description"] = meanings[name][field]
    return {"$schema": _DIALECT, **schema, "title": "patgate configuration"}


def _meanings() -> dict[str, dict[str, str]]:
    """The docstring of every field, by class and field."""
    meanings: dict[str, dict[str, str]] = {}
    modules = (model, cors, listeners, routes, upstreams)
    for section in chain.from_iterable(ast.parse(inspect.getsource(module)).body for module in modules):
        if not isinstance(section, ast.ClassDef):
            continue
        fields = meanings.setdefault(section.name, {})
        for base in section.bases:
            if isinstance(base, ast.Name):
                fields.update(meanings.get(base.id, {}))
        for field, text in pairwise(section.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                    fields[name] = " ".join(meaning.split())
    return meanings
