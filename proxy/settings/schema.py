"""The configuration's JSON Schema (draft 2020-12), for editors and for those who generate configurations.

The meaning of a setting is the docstring under its field. It is read from the source here, on demand, because
pydantic's own ``use_attribute_docstrings`` reads it at import: 40 ms for every process that starts, workers included.
"""

import ast
import inspect
from itertools import pairwise
from typing import Any

from proxy.settings import model

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """What a configuration file may hold. Rules between fields are beyond a schema: ``patgate check`` knows them."""
    schema = model.Settings.model_json_schema(mode="validation")
    meanings = _meanings()
    for name, section in {"Settings": schema, **schema["$defs"]}.items():
        for field, described in section.get("properties", {}).items():
            described["description"] = meanings[name][field]
    return {"$schema": _DIALECT, **schema, "title": "patgate configuration"}


def _meanings() -> dict[str, dict[str, str]]:
    """The docstring of every field, by class and field."""
    found: dict[str, dict[str, str]] = {}
    for section in ast.parse(inspect.getsource(model)).body:
        if not isinstance(section, ast.ClassDef):
            continue
        fields = found.setdefault(section.name, {})
        for field, text in pairwise(section.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                    fields[name] = " ".join(meaning.split())
    return found
