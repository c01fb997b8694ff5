"""The table of claims, which a client must not send."""

from __future__ import annotations

import pytest

from proxy.core.identity import IdentityNameError, names_from
from proxy.core.request.claims import CLAIMS, FAMILIES, FAMILY_NAMES, KIND_OF, ClaimKind, may_be_believed


def test_every_kind_has_names_and_no_name_is_listed_twice() -> None:
    assert set(CLAIMS) == set(FAMILIES) == set(ClaimKind)
    assert all(CLAIMS.values())
    assert len(KIND_OF) == sum(map(len, CLAIMS.values()))
    assert len(FAMILY_NAMES) == sum(map(len, FAMILIES.values()))


@pytest.mark.parametrize(
    ("name", "believed"),
    [
        ("X-Real-IP", True),
        ("cf_connecting_ip", True),
        ("X-Scheme", True),
        ("Proxy", False),
        ("Forwarded", False),
        ("X-Forwarded-For", False),
        ("Script-Name", False),
        ("X-Original-Anything", False),
        ("X-Remote-User", False),
        ("Accept", False),
        ("é", False),
    ],
)
def test_only_client_and_transport_may_be_believed(name: str, believed: bool) -> None:
    assert may_be_believed(name) is believed


@pytest.mark.parametrize("name", ["X-Webauth-User", "X-Remote-User", "X-Forwarded-User", "X-Goog-Iap-User"])
def test_an_identity_header_of_another_gateway_can_carry_an_identity(name: str) -> None:
    """A backend written for that gateway then works behind this one."""
    assert names_from({"user": name}).headers[0][1] == name


@pytest.mark.parametrize("name", ["X-Original-User", "X-Accel-User", "X-Forwarded-Anything", "Script-Name", "Proxy"])
def test_any_other_claim_cannot_carry_an_identity(name: str) -> None:
    with pytest.raises(IdentityNameError):
        names_from({"user": name})
