"""Permissions: parsing, matching, and a ``*`` in a request, which never equals a wildcard."""

from __future__ import annotations

import gc
import time
import tracemalloc

import pytest

from proxy.core.permissions import Permission, PermissionSet, PermissionSyntaxError, valid_operation

READ = ("things", "42", "read")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("things:read", Permission("things", None, "read")),
        ("things/*:read", Permission("things", None, "read")),
        ("things/42:read", Permission("things", "42", "read")),
        ("*:*", Permission(None, None, None)),
        ("*/42:read", Permission(None, "42", "read")),
        ("things/urn:x:1:read", Permission("things", "urn:x:1", "read")),
        ("things/a/b:read", Permission("things", "a/b", "read")),
        ("things/caf%C3%A9:read", Permission("things", "café", "read")),
        ("things/%2A:read", Permission("things", "*", "read")),
    ],
)
def test_a_text_is_parsed_to_entity_id_and_operation(text: str, parsed: Permission) -> None:
    assert Permission.parse(text) == parsed
    assert Permission.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "things",
        "things:",
        ":read",
        "things/:read",
        "/1:read",
        "a:b:read",
        "th*:read",
        "things/4*:read",
        "things:re*",
        "things:a/b",
        "a b:read",
        'a"b:read',
        "a\\b:read",
        "café:read",
        "a%zz:read",
        "a%C3:read",
        "a" * 600 + ":read",
        "things:read\n",
        "**:read",
    ],
)
def test_an_invalid_text_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(PermissionSyntaxError) as raised:
        Permission.parse(text)
    assert len(text) < 4 or text not in str(raised.value)


@pytest.mark.parametrize(
    ("texts", "request_", "allowed"),
    [
        (["things:read"], READ, True),
        (["things:read"], ("things", None, "read"), True),
        (["things/42:read"], READ, True),
        (["things/42:read"], ("things", "43", "read"), False),
        (["things/42:read"], ("things", None, "read"), False),
        (["things/42:*"], ("things", "42", "delete"), True),
        (["*/42:read"], READ, True),
        (["*/42:read"], ("other", "43", "read"), False),
        (["*:read"], READ, True),
        (["*:read"], ("things", "42", "update"), False),
        (["things:*", "*:read"], ("other", "1", "read"), True),
        (["things:update", "*:read"], READ, True),
        (["*:*"], ("anything", None, "whatever"), True),
        ([], READ, False),
        (["things:read"], ("Things", "42", "read"), False),
        (["things:read"], ("things", "42", "READ"), False),
    ],
)
def test_a_set_allows_exactly_what_one_of_its_entries_allows(
    texts: list[str], request_: tuple[str, str | None, str], allowed: bool
) -> None:
    permissions = PermissionSet.of(texts)
    assert permissions.allows(*request_) is allowed
    assert (permissions.entry_for(*request_) is not None) is allowed


def test_a_star_in_a_request_is_an_ordinary_name() -> None:
    assert not PermissionSet.of(["things:read", "things/42:*"]).allows("*", "42", "read")
    assert not PermissionSet.of(["things/42:read"]).allows("things", "*", "read")
    assert not PermissionSet.of(["things:read"]).allows("things", "42", "*")
    assert PermissionSet.of(["things/%2A:read"]).allows("things", "*", "read")
    assert not PermissionSet.of(["things/%2A:read"]).allows("things", "42", "read")


def test_entry_for_returns_the_most_specific_entry() -> None:
    permissions = PermissionSet.of(["*:*", "things:*", "things/42:read"])
    assert str(permissions.entry_for(*READ)) == "things/42:read"


def test_equal_sets_are_one_object_while_one_is_referenced() -> None:
    first = PermissionSet.of(["things:read", "a:list", "things:read"])
    assert PermissionSet.of(("a/*:list", "things:read")) is first
    assert first.texts == ("a:list", "things:read")
    assert first.text == "a:list things:read"
    assert (len(first), "a:list" in first, "a:read" in first) == (2, True, False)
    del first
    gc.collect()
    assert PermissionSet.of(["things:read", "a:list"]).texts == ("a:list", "things:read")


def test_covers_is_exact_about_wildcards() -> None:
    every, things = PermissionSet.of(["*:*"]), PermissionSet.of(["things:*"])
    assert every.covers(things)
    assert not things.covers(every)
    assert not PermissionSet.of(["things:read", "things:update"]).covers(things)
    assert things.covers(PermissionSet.of(["things/42:read", "things:list"]))
    assert things.covers(PermissionSet.of([]))


def test_operation_names_have_a_plain_grammar() -> None:
    assert valid_operation("publish")
    for name in ("", "*", "a b", "a:b", "a/b", "-a", "a" * 65, "lösen", "a\n"):
        assert not valid_operation(name)


def test_large_sets_are_compared_without_comparing_all_pairs_of_entries() -> None:
    """Comparing ten thousand entries with ten thousand others would block the event loop for a minute."""
    begun = time.thread_time()
    wide = PermissionSet.of([f"e{number}:op{number}" for number in range(10_000)])
    exact = PermissionSet.of([f"e{number}/i{number}:op{number}" for number in range(10_000)])
    assert wide.covers(exact)
    assert not exact.covers(wide)
    assert wide.covering("e7/i7:op7") == ["e7:op7"]
    assert time.thread_time() - begun < 15


def test_entries_for_every_entity_are_not_copied_into_each_named_entity() -> None:
    texts = [f"*:op{number}" for number in range(500)] + [f"e{number}:own" for number in range(500)]
    tracemalloc.start()
    try:
        held = PermissionSet.of(texts)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 4_000_000
    assert held.allows("e1", None, "own")
    assert held.allows("e1", None, "op499")
    assert held.allows("unnamed", "7", "op0")
    assert not held.allows("unnamed", None, "own")


@pytest.mark.parametrize("text", ["things:read", "things/%2A:read", "a%62c:read", "things/*:read", "*/x:read", "*/*:*"])
def test_the_canonical_text_is_that_of_the_parsed_permission(text: str) -> None:
    assert Permission.canonical(text) == str(Permission.parse(text))


def test_sets_of_other_permissions_are_not_equal() -> None:
    one, same, other = (PermissionSet.of(texts) for texts in (["things:read"], ["things:read"], ["things:list"]))
    assert one == one == same
    assert one != other
    assert one != "things:read"
