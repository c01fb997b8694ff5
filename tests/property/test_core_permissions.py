"""Permission sets: a compiled set is equivalent to its single entries."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.permissions import Permission, PermissionSet

# Few names, so that they collide, with a star and other special characters, which requests may contain.
names = st.sampled_from(["things", "channels", "*", "a:b", "é", "%", "read"])
ids = st.sampled_from(["1", "2", "*", "a/b", "x:y", "ü", " "])
operations = st.sampled_from(["read", "list", "*", "update"])
entries = st.builds(Permission, st.none() | names, st.none() | ids, st.none() | operations)
sets = st.lists(entries, max_size=6).map(lambda many: PermissionSet.of(map(str, many)))
anything = st.text(min_size=1, max_size=8)
requests = st.tuples(names | anything, st.none() | ids | anything, operations | anything)


@given(st.builds(Permission, st.none() | anything, st.none() | anything, st.none() | anything))
def test_the_text_of_a_permission_is_a_scope_token_and_parses_back(entry: Permission) -> None:
    text = str(entry)
    assert re.fullmatch(r"[!#-\[\]-~]+", text)
    assert Permission.parse(text) == entry


@given(st.text(max_size=20) | st.text(alphabet="ab*/:%2AC3A9é", max_size=14))
def test_a_text_is_a_permission_with_a_stable_canonical_text_or_refused(text: str) -> None:
    try:
        entry = Permission.parse(text)
    except ValueError:
        return
    assert Permission.parse(str(entry)) == entry
    assert Permission.canonical(text) == str(entry)


@given(sets, requests)
def test_a_compiled_set_allows_exactly_what_one_of_its_entries_allows(
    held: PermissionSet, request: tuple[str, str | None, str]
) -> None:
    allowed = any(entry.allows(*request) for entry in held.entries)
    assert held.allows(*request) == allowed
    entry = held.entry_for(*request)
    assert (entry is not None) == allowed
    assert entry is None or (entry in held.entries and entry.allows(*request))


@given(sets, sets, requests)
def test_a_union_allows_what_either_allows(
    left: PermissionSet, right: PermissionSet, request: tuple[str, str | None, str]
) -> None:
    both = PermissionSet.of(left.texts + right.texts)
    assert both.allows(*request) == (left.allows(*request) or right.allows(*request))
    assert both.covers(left) and both.covers(right)


@given(sets, sets, requests)
def test_a_covering_set_allows_what_the_covered_set_allows(
    wide: PermissionSet, narrow: PermissionSet, request: tuple[str, str | None, str]
) -> None:
    if wide.covers(narrow) and narrow.allows(*request):
        assert wide.allows(*request)


@given(sets, sets)
def test_for_a_set_that_is_not_covered_some_request_is_allowed_only_by_it(
    wide: PermissionSet, narrow: PermissionSet
) -> None:
    fresh = "nobody-names-this"
    requests_of = [
        (entry.entity or fresh, entry_id, entry.operation or fresh)
        for entry in narrow.entries
        for entry_id in ({entry.entity_id} if entry.entity_id is not None else {None, fresh})
    ]
    assert wide.covers(narrow) == all(wide.allows(*request) for request in requests_of)


@given(sets, sets, sets)
def test_covers_of_sets_is_a_preorder(a: PermissionSet, b: PermissionSet, c: PermissionSet) -> None:
    assert a.covers(a)
    if a.covers(b) and b.covers(c):
        assert a.covers(c)


@given(entries, entries, entries)
def test_covers_of_single_entries_is_a_partial_order(a: Permission, b: Permission, c: Permission) -> None:
    assert a.covers(a)
    if a.covers(b) and b.covers(a):
        assert a == b
    if a.covers(b) and b.covers(c):
        assert a.covers(c)


@given(st.lists(st.sampled_from(["things", "channels"]), max_size=3), requests)
def test_a_star_in_a_request_is_allowed_no_more_than_any_unknown_name(
    held: list[str], request: tuple[str, str | None, str]
) -> None:
    permissions = PermissionSet.of(f"{name}/{number}:read" for number, name in enumerate(held))
    entity, entity_id, operation = request
    for starred, fresh in (
        (("*", entity_id, operation), ("nobody", entity_id, operation)),
        ((entity, "*", operation), (entity, "nobody", operation)),
        ((entity, entity_id, "*"), (entity, entity_id, "nobody")),
    ):
        assert permissions.allows(*starred) == permissions.allows(*fresh)


@given(st.lists(entries, max_size=6), st.randoms(use_true_random=False))
def test_the_same_permissions_are_the_same_object_in_any_order(many: list[Permission], random: object) -> None:
    texts = [str(entry) for entry in many]
    assert PermissionSet.of(texts) is PermissionSet.of([*reversed(texts), *texts])
