"""The keys by which changes find grants."""

from __future__ import annotations

from proxy.core.dependency_keys import member_key, org_key, role_key, token_key, user_key


def test_the_keys_are_spelt_as_the_change_feed_spells_them() -> None:
    assert (token_key("t"), user_key("u"), member_key("o", "u"), role_key("r"), org_key("o")) == (
        ("token:t", "user:u", "member:o/u", "role:r", "org:o")
    )
