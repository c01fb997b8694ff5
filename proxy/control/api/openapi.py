"""OpenAPI 3.1 document: generated from the table of operations and from the models that validate requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from proxy import __version__
from proxy.control.api.operation import PARAMETERS, Operation
from proxy.control.models import ResponseModel
from proxy.control.request_parsing import KEY_HEADER

PATH: Final = "/api/v1/openapi.json"
_JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"
_REF: Final = "#/components/schemas/{model}"
_OWNERS: Final = {"tokens": "token", "keys": "key", "users": "user", "orgs": "org", "invitations": "invitation"}
"""By tag: the path parameter that identifies what its operations create."""

_ALWAYS: Final = (400, 401, 403, 404, 421, 422, 429, 500, 503)
_MEANINGS: Final[Mapping[int, str]] = {
    400: "The request cannot be understood, or its credential cannot be read.",
    401: "There is no credential, or it is not accepted.",
    403: "The credential is valid and does not allow this.",
    404: "There is no such thing, or the caller may not see it.",
    408: "The body did not arrive in time.",
    409: "The current state does not allow this.",
    413: "The body is larger than 64 KiB.",
    415: "The body is not application/json.",
    421: "The Host is not one of this listener.",
    422: "Fields are invalid; `errors` names them all.",
    429: "Too many credentials from this address were refused.",
    500: "A defect of patgate, which has been logged.",
    503: "This cannot be answered now.",
}


class FieldProblem(ResponseModel):
    """An invalid field, and what is allowed there."""

    field: str
    problem: str


class Problem(ResponseModel):
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    decision: str = ""
    errors: tuple[FieldProblem, ...] = ()


class Specification:
    """The document as a public resource, with the same bytes every time.

    It is generated at the first request, which is rare, and in a thread, because it takes a third of a second.
    """

    def __init__(self, table: Iterable[Operation[Any, Any]], brand: str) -> None:
        self._table = tuple(table)
        self._brand = brand
        self._bytes = b""
        self._generating = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """The route of the document."""
        return [web.get(PATH, self.show)]

    async def show(self, _request: web.Request) -> web.Response:
        """Handle ``openapi.show``."""
        async with self._generating:
            if not self._bytes:
                self._bytes = await asyncio.to_thread(self._generate)
        return web.Response(body=self._bytes, content_type=_JSON)

    def _generate(self) -> bytes:
        return json.dumps(document(self._table, self._brand), separators=(",", ":")).encode()


def document(table: Iterable[Operation[Any, Any]], brand: str) -> dict[str, Any]:
    """The document."""
    rows = tuple(table)
    schemas = _schemas(rows)
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.value.lower()] = _operation(row, rows, schemas)
    paths["/openapi.json"] = {
        "get": {
            "operationId": "openapi.show",
            "summary": "Show this document",
            "tags": ["openapi"],
            "security": [],
            "responses": {"200": {"description": "OK", "content": {_JSON: {"schema": {"type": "object"}}}}},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "patgate control API",
            "version": __version__,
            "description": "Users, organisations, roles, tokens, keys, policy and audit of one patgate.",
        },
        "servers": [{"url": "/api/v1"}],
        "security": [{"bearer": []}, {"apiKey": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {_refusal_name(status): _refusal(status) for status in _MEANINGS},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": f"{brand}_pat_… or {brand}_key_…",
                    "description": "A token or key of patgate.",
                },
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same token."},
            },
        },
    }


def _operation(
    row: Operation[Any, Any], rows: tuple[Operation[Any, Any], ...], schemas: Mapping[str, Any]
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": row.name,
        "summary": row.summary,
        "tags": [row.tag],
        "parameters": [*_path_parameters(row), *_query_parameters(row), *_header_parameters(row)],
        "responses": {
            str(row.status): _success(row, rows),
            **{str(status): {"$ref": f"#/components/responses/{_refusal_name(status)}"} for status in statuses(row)},
        },
    }
    if row.takes_body:
        needed = bool(schemas[row.body.__name__].get("required"))
        operation["requestBody"] = {"required": needed, "content": {_JSON: {"schema": _ref(row.body)}}}
    return operation


def statuses(row: Operation[Any, Any]) -> tuple[int, ...]:
    """All statuses of the operation's refusals."""
    also = (409,) if row.conflicts else ()
    of_body = (408, 413, 415) if row.takes_body else ()
    return tuple(sorted((*_ALWAYS, *also, *of_body)))


def _success(row: Operation[Any, Any], rows: tuple[Operation[Any, Any], ...]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "description": "Done; only this response has the secret." if row.secret else "Done.",
        "headers": {"X-Request-Id": {"schema": {"type": "string"}}},
        "content": {_JSON: {"schema": _ref(row.answer)}},
    }
    parameter = _OWNERS.get(row.tag)
    if row.creates and parameter is not None and "id" in row.answer.model_fields:
        result["links"] = {
            other.name.replace(".", "_"): {
                "operationId": other.name,
                "parameters": {parameter: "$response.body#/id"},
            }
            for other in rows
            if other.parameters == (parameter,)
        }
    return result


def _refusal_name(status: int) -> str:
    return f"Refused{status}"


def _refusal(status: int) -> dict[str, Any]:
    headers = {}
    if status in (400, 401, 403):
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}}
    if status in (429, 503):
        headers["Retry-After"] = {"schema": {"type": "integer"}}
    return {
        "description": _MEANINGS[status],
        **({"headers": headers} if headers else {}),
        "content": {_PROBLEM: {"schema": _ref(Problem)}},
    }


def _path_parameters(row: Operation[Any, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PARAMETERS[name].description,
            "schema": {
                "type": "string",
                "pattern": PARAMETERS[name].pattern,
                "minLength": 1,
                "maxLength": PARAMETERS[name].longest,
            },
        }
        for name in row.parameters
    ]


def _query_parameters(row: Operation[Any, Any]) -> list[dict[str, Any]]:
    schema = row.query.model_json_schema(ref_template=_REF)
    found = []
    for name, field in schema.get("properties", {}).items():
        # Null is the value of an absent parameter only: a query has no null.
        kept = {key: value for key, value in field.items() if key not in ("title", "description", "default")}
        choices = [choice for choice in kept.pop("anyOf", ()) if choice != {"type": "null"}]
        if choices:
            kept = {**choices[0], **kept}
        if field.get("default") is not None and field["default"] != []:
            kept["default"] = field["default"]
        parameter = {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": kept}
        if "description" in field:
            parameter["description"] = field["description"]
        found.append(parameter)
    return found


def _header_parameters(row: Operation[Any, Any]) -> list[dict[str, Any]]:
    if not row.creates:
        return []
    return [
        {
            "name": KEY_HEADER,
            "in": "header",
            "required": False,
            "description": "The client's id of this request: a retry with the same id creates nothing twice.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        }
    ]


def _schemas(rows: Iterable[Operation[Any, Any]]) -> dict[str, Any]:
    models: dict[type[BaseModel], JsonSchemaMode] = {Problem: "serialization"}
    for row in rows:
        models[row.answer] = "serialization"
        if row.takes_body:
            models[row.body] = "validation"
    _, found = models_json_schema(list(models.items()), ref_template=_REF)
    schemas: dict[str, Any] = found["$defs"]
    for schema in schemas.values():
        _untitled(schema)
    bodies = {row.body.__name__ for row in rows}
    for name, schema in schemas.items():
        if name not in bodies:
            # Members may be added to responses: clients ignore members that they do not know.
            schema.pop("additionalProperties", None)
    return schemas


def _untitled(schema: dict[str, Any]) -> None:
    """Remove the titles that pydantic gives to properties: they only repeat the name."""
    for field in schema.get("properties", {}).values():
        if isinstance(field, dict):
            field.pop("title", None)


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}
