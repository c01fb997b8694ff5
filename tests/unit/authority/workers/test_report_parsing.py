"""Rows of a worker's report that are not exactly right are invalid, and no text is longer than its column."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.authority.workers import report_parsing
from proxy.authority.workers.report_parsing import InvalidReport
from tests.unit.authority.workers.test_recorder import report, row

USE: list[Any] = ["a" * 12, 1, 2.0, "::1"]


def test_valid_rows_are_parsed() -> None:
    assert report_parsing.event(row()).event.reason == "role_denies"
    assert report_parsing.event(row(action="request", prefix="", proven=False)).event.action == "request"
    assert report_parsing.event(row(host="api.example")).event.details["host"] == "api.example"
    for text in ("entity=things&operation=read", "entity=things&operation=read&id=[redacted]&org=a"):
        assert report_parsing.event(row(requirement=text)).event.details["requirement"] == text
    assert report_parsing.use(USE).at == 2.0
    assert report_parsing.report(report()).token_id == "a" * 12


@pytest.mark.parametrize(
    "changes",
    [
        {"more": 1},
        {"at": "12"},
        {"at": float("nan")},
        {"at": float("inf")},
        {"at": -1.0},
        {"at": 2.0**41},
        {"at": True},
        {"prefix": "x" * 65},
        {"prefix": None},
        {"proven": 1},
        {"action": "account.pat.mint"},
        {"action": "request.omitted"},
        {"action": "request." + "x" * 64},
        {"target": "x" * 129},
        {"route": "x" * 201},
        {"org": "x" * 33},
        {"outcome": "done"},
        {"outcome": ["refused"]},
        {"reason": "because"},
        {"address": "x" * 65},
        {"decision": "x" * 65},
        {"method": "x" * 65},
        {"path": "x" * 1537},
        {"path": "\ud800"},
        {"path": "\0"},
        {"host": "x" * 257},
        {"status": -1},
        {"status": 2**53},
        {"status": True},
        {"status": 200.0},
        {"second": None},
        {"second": {}},
        {"second": {"header": "if", "path": "/"}},
        {"second": {"header": "x" * 65}},
        {"second": {"header": "if", "method": "GET", "path": "x" * 1537}},
        {"second": {"header": "if", "method": 1, "path": "/"}},
        {"requirement": None},
        {"requirement": ""},
        {"requirement": "entity=things"},
        {"requirement": "entity=things&operation=read&id=\u00e9"},
        {"requirement": "entity=things&operation=read&id=" + "x" * 256},
        {"requirement": "entity=things&operation=read&id=" + "[redacted]" * 99},
    ],
    ids=repr,
)
def test_an_event_with_an_invalid_field_is_invalid(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidReport):
        report_parsing.event(row() | changes)


@pytest.mark.parametrize("name", sorted(row()))
def test_an_event_without_one_of_its_fields_is_invalid(name: str) -> None:
    lacking = row()
    del lacking[name]
    with pytest.raises(InvalidReport):
        report_parsing.event(lacking)


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [[]]], ids=repr)
def test_a_value_of_another_type_is_invalid(value: object) -> None:
    for read in (report_parsing.event, report_parsing.use, report_parsing.report):
        with pytest.raises(InvalidReport):
            read(value)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("value", [None, {}, "x" * 2000, -1, float("nan")], ids=repr)
def test_uses_with_an_invalid_field_are_invalid(place: int, value: object) -> None:
    with pytest.raises(InvalidReport):
        report_parsing.use([*USE[:place], value, *USE[place + 1 :]])


@pytest.mark.parametrize("place", range(9))
@pytest.mark.parametrize("value", [None, {}, "x" * 2000, -1, float("nan")], ids=repr)
def test_a_report_with_an_invalid_field_is_invalid(place: int, value: object) -> None:
    with pytest.raises(InvalidReport):
        report_parsing.report([*report()[:place], value, *report()[place + 1 :]])
