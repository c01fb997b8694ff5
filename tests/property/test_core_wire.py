"""The wire format: a stream gives the same messages wherever it is cut."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_network
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import WireError
from proxy.core.ipc.wire import Deframer, frame, grant_from_wire, grant_to_wire, refused_from_wire, refused_to_wire
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Grant, OrgGrant, RefusedGrant, by_org
from proxy.core.networks import AddressRanges
from proxy.core.permissions import Permission, PermissionSet
from proxy.core.reasons import Reason

texts = st.text(st.characters(codec="utf-8"), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
messages = st.dictionaries(texts, values, max_size=4)
names = st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
sets = st.lists(st.builds(Permission, names, names, names), max_size=4).map(
    lambda many: PermissionSet.of(map(str, many))
)
networks = st.ip_addresses().map(ip_network).filter(lambda one: not str(one).startswith("::ffff:"))
grants = st.builds(
    Grant,
    prefix=texts,
    token_id=texts,
    kind=st.sampled_from(Kind),
    token_name=texts,
    digest=st.none() | st.binary(min_size=32, max_size=32),
    user_id=texts,
    email=texts,
    org_id=texts,
    org_name=texts,
    reach=st.sampled_from((Reach.PERSONAL, Reach.ORG)),
    role=texts,
    permissions=sets,
    scopes=st.none() | sets,
    expires_at=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    depends=st.lists(texts, max_size=3).map(tuple),
    ranges=st.none() | st.lists(networks, max_size=3).map(AddressRanges),
)
orgs = st.lists(
    st.builds(
        OrgGrant, org_id=texts.map("org_".__add__), org_name=texts.map("team-".__add__), role=texts, permissions=sets
    ),
    max_size=3,
    unique_by=(lambda org: org.org_id, lambda org: org.org_name),
).map(by_org)
grants |= st.builds(lambda held, orgs: replace(held, reach=Reach.ACCOUNT, orgs=orgs), grants, orgs) | st.builds(
    lambda held, orgs: replace(held, reach=Reach.ORGS, orgs=orgs, permissions=PermissionSet.of(())), grants, orgs
)
refusals = st.builds(
    RefusedGrant,
    prefix=texts,
    reason=st.sampled_from(sorted(set(Reason) - {Reason.ALLOWED})),
    depends=st.lists(texts, max_size=3).map(tuple),
)


@given(st.lists(messages, max_size=5), st.lists(st.integers(0, 400), max_size=12))
def test_a_stream_cut_at_any_points_gives_the_same_messages(sent: list[dict[str, object]], cuts: list[int]) -> None:
    stream = b"".join(map(frame, sent))
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    deframer = Deframer()
    got = [message for start, end in pairwise(edges) for message in deframer.feed(stream[start:end])]
    assert got == sent


@given(grants)
def test_the_wire_format_keeps_a_grant_unchanged(held: Grant) -> None:
    [message] = Deframer().feed(frame(grant_to_wire(held)))
    assert grant_from_wire(message) == held


@given(refusals)
def test_the_wire_format_keeps_a_refused_grant_unchanged(refused: RefusedGrant) -> None:
    [message] = Deframer().feed(frame(refused_to_wire(refused)))
    assert refused_from_wire(message) == refused


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: len(tail).to_bytes(4, "big") + tail))
def test_any_bytes_raise_only_a_wire_error(data: bytes) -> None:
    with suppress(WireError):
        Deframer().feed(data)


@given(values | grants.map(grant_to_wire).flatmap(lambda wire: st.sampled_from([{**wire, key: 0} for key in wire])))
def test_any_json_value_raises_only_a_wire_error(value: object) -> None:
    for read in (grant_from_wire, refused_from_wire):
        with suppress(WireError):
            read(value)
