"""The wire format of the worker link: frames and values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.core.errors import WireError
from proxy.core.ipc.wire import (
    MAX_MESSAGE,
    Deframer,
    frame,
    grant_from_wire,
    grant_to_wire,
    refused_from_wire,
    refused_to_wire,
    texts_of,
)
from proxy.core.kinds import Reach
from proxy.core.model import Grant, OrgGrant, RefusedGrant, by_org
from proxy.core.permissions import PermissionSet
from proxy.core.reasons import Reason
from tests.unit.core.grants import grant

REFUSED = RefusedGrant(prefix="acme_pat_x", reason=Reason.TOKEN_REVOKED, depends=("token:x",))
VIEW, EDIT = PermissionSet.of(["a:read"]), PermissionSet.of(["a:read", "a:update"])
ORGS = by_org(
    OrgGrant(org_id=f"org_{number}", org_name=f"team-{number}", role=role, permissions=held)
    for number, role, held in ((1, "viewer", VIEW), (2, "editor", EDIT), (3, "reader", VIEW))
)
ATTACHED = grant(reach=Reach.ORGS, permissions=PermissionSet.of(()), orgs=ORGS)
ACCOUNT = grant(reach=Reach.ACCOUNT, orgs=ORGS)


def test_a_frame_is_its_length_and_its_json() -> None:
    assert frame({"op": "é"}) == b'\x00\x00\x00\x0b{"op":"\xc3\xa9"}'


def test_grants_and_refusals_are_unchanged_by_the_wire_format() -> None:
    for held in (grant(), grant(digest=None, scopes=PermissionSet.of(["a:b"]), expires_at=1.5), grant(expires_at=7)):
        [message] = Deframer().feed(frame(grant_to_wire(held)))
        assert grant_from_wire(message) == held
    for held in (ATTACHED, ACCOUNT, grant(reach=Reach.ACCOUNT, orgs={})):
        [message] = Deframer().feed(frame(grant_to_wire(held)))
        assert grant_from_wire(message) == held
    [message] = Deframer().feed(frame(refused_to_wire(REFUSED)))
    assert refused_from_wire(message) == REFUSED


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "root"}, {"reach": "world"}, {"digest": "xy"}, {"digest": 1}, {"permissions": "a:b"},
        {"permissions": ["ab"]},
        {"scopes": [1]}, {"expires_at": True}, {"expires_at": "soon"}, {"expires_at": 10**400}, {"email": None},
        {"extra": 1},
        {"depends": None},
    ],
)  # fmt: skip
def test_a_grant_with_a_wrong_field_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        grant_from_wire(grant_to_wire(grant()) | changes)


def test_a_permission_set_of_several_organisations_is_sent_once() -> None:
    wire = grant_to_wire(ACCOUNT)["orgs"]
    assert wire == {
        "sets": [["a:read"], ["a:read", "a:update"]],
        "orgs": [
            ["org_1", "team-1", "viewer", 0],
            ["org_2", "team-2", "editor", 1],
            ["org_3", "team-3", "reader", 0],
        ],
    }
    crossed = grant_from_wire(grant_to_wire(ACCOUNT)).orgs
    assert crossed is not None and crossed["org_1"].permissions is crossed["team-3"].permissions
    assert texts_of(ACCOUNT) > texts_of(grant()) >= len(grant().permissions)


NO_ORG: list[object] = [
    [], {}, ["i", "n", "r"], ["i", "n", "r", 1], ["i", "n", "r", -1], ["i", "n", "r", False], ["i", "n", "r", "0"],
    ["i", "n", None, 0], [1, "n", "r", 0], ["i", "n", "r", 0, 0],
]  # fmt: skip


@pytest.mark.parametrize(
    "orgs",
    [
        None, [], {}, {"sets": []}, {"sets": {}, "orgs": []}, {"sets": [], "orgs": {}}, {"sets": ["a:b"], "orgs": []},
        *({"sets": [["a:b"]], "orgs": [org]} for org in NO_ORG),
    ],
)  # fmt: skip
def test_invalid_organisations_are_refused(orgs: object) -> None:
    with pytest.raises(WireError):
        grant_from_wire(grant_to_wire(ACCOUNT) | {"orgs": orgs})


@pytest.mark.parametrize(
    "held",
    [
        grant(reach=Reach.ACCOUNT), grant(reach=Reach.ORGS, permissions=PermissionSet.of(())), grant(orgs=ORGS),
        grant(reach=Reach.ORG, orgs=ORGS), grant(reach=Reach.ORGS, orgs=ORGS),
    ],
)  # fmt: skip
def test_an_inconsistent_grant_is_refused(held: Grant) -> None:
    """Its organisations do not fit its reach, or it has permissions outside its organisations."""
    with pytest.raises(WireError):
        grant_from_wire(grant_to_wire(held))


@pytest.mark.parametrize("value", [None, [], "x", {}, {"prefix": "p", "reason": "allowed", "depends": []}])
def test_an_invalid_refused_grant_is_refused(value: object) -> None:
    with pytest.raises(WireError):
        refused_from_wire(value)
    with pytest.raises(WireError):
        grant_from_wire(value)


@pytest.mark.parametrize(
    "data",
    [
        (MAX_MESSAGE + 1).to_bytes(4, "big"),
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"\0\0\0\x02[]",
        b"\0\0\0\x02{x",
        b'\0\0\0\x07{"a":\xff}',
        b'\0\0\0\x09{"a":NaN}',
        b"\0\0\x40\0" + b"[" * 0x4000,
    ],
)
def test_an_invalid_frame_breaks_the_deframer(data: bytes) -> None:
    deframer = Deframer()
    with pytest.raises(WireError):
        deframer.feed(data)
    with pytest.raises(WireError):
        deframer.feed(frame({}))


@pytest.mark.parametrize("message", [{"a": object()}, {"a": float("nan")}, {"a": "\ud800"}, {"a": "x" * MAX_MESSAGE}])
def test_a_message_that_is_not_json_or_too_large_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        frame(message)


def test_the_largest_message_is_accepted() -> None:
    text = "x" * (MAX_MESSAGE - len(json.dumps({"a": ""}, separators=(",", ":"))))
    assert Deframer().feed(frame({"a": text})) == [{"a": text}]
