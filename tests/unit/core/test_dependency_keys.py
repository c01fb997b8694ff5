"""The dependency keys, by which a change invalidates grants."""

from __future__ import annotations

from proxy.core.dependency_keys import member_key, org_key, role_key, token_key, user_key


def test_the_keys_have_the_form_of_the_change_feed() -> None:
    assert (token_key("t"), user_key("u"), member_key("o", "u"), role_key("r"), org_key("o")) == (
        ("token:t", "user:u", "member:o/u", "role:r", "org:o")
    )
