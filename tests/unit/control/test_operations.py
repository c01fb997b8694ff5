"""The table of operations, and the OpenAPI document that is built from it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from proxy.control.api.endpoint import ROOT
from proxy.control.api.openapi import document, statuses
from proxy.control.api.operation import PARAMETERS, Method, Operation
from proxy.control.api.operations import OPERATIONS
from proxy.control.app import tcp_app
from proxy.control.models import Listing
from tests.support.gateway import ROOT as REPOSITORY
from tests.unit.control.conftest import World

DOCUMENT = document(OPERATIONS, "acme")


def named(row: Operation[Any, Any]) -> str:
    return row.name


def test_no_two_operations_share_a_name_or_a_method_and_path() -> None:
    assert len({row.name for row in OPERATIONS}) == len(OPERATIONS)
    assert len({(row.method, row.path) for row in OPERATIONS}) == len(OPERATIONS)


@pytest.mark.parametrize("row", OPERATIONS, ids=named)
def test_an_operation_is_complete(row: Operation[Any, Any]) -> None:
    assert set(row.parameters) <= set(PARAMETERS)
    assert row.summary
    assert row.summary[0].isupper()
    assert not row.summary.endswith(".")
    assert row.secret == ("token" in row.answer.model_fields and row.answer.__name__.startswith("Created"))
    assert not row.creates or row.method is Method.POST
    assert row.status == (201 if row.creates else 200)


def test_every_list_has_pages_except_short_ones() -> None:
    whole = {
        row.name for row in OPERATIONS if issubclass(row.answer, Listing) and "limit" not in row.query.model_fields
    }
    assert whole <= {"roles.list", "roles.list_in_org", "policy.crowded", "routes.list", "routes.report", "nodes.list"}


async def test_no_handler_is_without_an_operation(world: World) -> None:
    """Every route of the TCP application is health, metrics, the document, or a row of the table."""
    served = set()
    for route in tcp_app(world.authority, ["gate.example.org"]).router.routes():
        assert route.resource is not None
        if route.method != "HEAD":
            served.add((route.method, route.resource.canonical))
    rows = {(row.method.value, ROOT + row.path) for row in OPERATIONS}
    rest = {("GET", path) for path in ("/livez", "/readyz", "/startupz", "/metrics", f"{ROOT}/openapi.json")}
    assert served == rows | rest


def test_every_path_that_the_command_line_requests_has_an_operation() -> None:
    """The command line can do nothing that other clients of the API cannot do."""
    call = re.compile(r"(?:control\.(get|post|put|patch|delete|every)|(?:show_list|walk)\(\w+,)\(?\s*f?\"(/[^\"]*)\"")
    places = [(row.method.value, re.sub(r"\{\w+\}", "[^/]+", row.path)) for row in OPERATIONS]
    asked = set()
    for module in sorted((REPOSITORY / "proxy" / "cli").rglob("*.py")):
        for verb, path in call.findall(module.read_text()):
            asked.add(("GET" if verb in ("every", "") else verb.upper(), path.partition("?")[0]))
    assert len(asked) > 10
    for method, path in sorted(asked):
        # A placeholder of a command may stand for the noun as well as for an id.
        pattern = re.sub(r"\{[^}]*\}", "[^/]+", path)
        assert any(
            method == known and (re.fullmatch(place, path) or re.fullmatch(pattern, place.replace("[^/]+", "x")))
            for known, place in places
        ), (method, path)


def test_the_document_describes_every_operation() -> None:
    described = {operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()}
    assert described == {row.name for row in OPERATIONS} | {"openapi.show"}
    assert DOCUMENT["openapi"] == "3.1.0"
    assert set(DOCUMENT["components"]["securitySchemes"]) == {"bearer", "apiKey"}


def test_every_reference_in_the_document_resolves() -> None:
    text = json.dumps(DOCUMENT)
    for kind, name in set(re.findall(r'"#/components/(\w+)/([^"]+)"', text)):
        assert name in DOCUMENT["components"][kind], name
    unused = {name for name in DOCUMENT["components"]["schemas"] if f'"#/components/schemas/{name}"' not in text}
    assert not unused


@pytest.mark.parametrize("row", OPERATIONS, ids=named)
def test_the_document_lists_every_response(row: Operation[Any, Any]) -> None:
    operation = DOCUMENT["paths"][row.path][row.method.value.lower()]
    assert set(operation["responses"]) == {str(status) for status in (row.status, *statuses(row))}
    assert {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"} == set(
        row.parameters
    )
    assert ("requestBody" in operation) == row.takes_body
    for response in operation["responses"].values():
        if "$ref" in response:
            response = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
        assert response["description"]


def test_every_pattern_in_the_document_compiles() -> None:
    for pattern in _patterns(DOCUMENT):
        re.compile(pattern)


def _patterns(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [schema["pattern"]] if isinstance(schema.get("pattern"), str) else []
        return own + [found for value in schema.values() for found in _patterns(value)]
    return [found for value in schema for found in _patterns(value)] if isinstance(schema, list) else []


async def test_the_document_is_public_and_the_same_every_time(world: World) -> None:
    bodies = []
    for _ in range(2):
        async with world.tcp.get(f"{ROOT}/openapi.json") as answer:
            assert (answer.status, answer.content_type) == (200, "application/json")
            bodies.append(await answer.read())
    assert bodies[0] == bodies[1]
    assert json.loads(bodies[0]) == document(OPERATIONS, "acme")
