"""Identity headers: which are sent, and which are stripped from a client's request."""

from __future__ import annotations

import pytest

from proxy.core.identity import (
    PRESETS,
    STRIPPED,
    IdentityHeaders,
    IdentityNameError,
    IdentityOutputs,
    encode_value,
    identity_lines,
    names_from,
)
from proxy.core.kinds import Reach
from proxy.core.permissions import PermissionSet
from proxy.core.request.claims import fold
from tests.unit.core.grants import grant


def test_every_header_of_the_preset_is_sent_even_if_empty() -> None:
    assert identity_lines(PRESETS["patgate"], grant()) == (
        b"X-Auth-User: u1\r\nX-Auth-Email: ada@example.org\r\nX-Auth-Org: \r\nX-Auth-Role: editor\r\n"
        b"X-Auth-Scopes: \r\nX-Auth-Token: acme_pat_abcDEF123456\r\nX-Auth-Token-Name: laptop\r\nX-Auth-Kind: pat\r\n"
    )


def test_scopes_are_a_list_with_spaces_and_names_are_encoded() -> None:
    lines = identity_lines(
        PRESETS["patgate"],
        grant(
            token_name="Ada's café\r\nX-Auth-Role: admin",
            org_name="50% off",
            reach=Reach.ORG,
            scopes=PermissionSet.of(["things:read", "things:list"]),
        ),
    )
    assert b"X-Auth-Scopes: things:list things:read\r\n" in lines
    assert b"X-Auth-Token-Name: Ada's%20caf%C3%A9%0D%0AX-Auth-Role:%20admin\r\n" in lines
    assert b"X-Auth-Org: 50%25%20off\r\n" in lines
    assert lines.count(b"\r\n") == 8


def test_the_other_presets_send_their_own_headers() -> None:
    assert identity_lines(PRESETS["oauth2-proxy"], grant()) == (
        b"X-Forwarded-User: u1\r\nX-Forwarded-Email: ada@example.org\r\nX-Forwarded-Groups: editor\r\n"
        b"X-Forwarded-Preferred-Username: ada@example.org\r\n"
    )
    assert identity_lines(PRESETS["remote-user"], grant()) == (
        b"Remote-User: u1\r\nRemote-Groups: editor\r\nRemote-Name: ada@example.org\r\nRemote-Email: ada@example.org\r\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        b"x-auth-user", b"X_Auth_User", b"X.AUTH.USER", b"x-Auth_user", b"X+Auth+User", b"REMOTE_USER",
        b"Remote.Groups",
        b"x_forwarded_for", b"Forwarded", b"X-Forwarded-User", b"X-REAL-IP", b"X-Original-URI", b"X-Rewrite-URL",
        b"X_HTTP_Method_Override", b"X-Request-ID", b"X-Forwarded-Method",
    ],
)  # fmt: skip
def test_these_client_headers_are_stripped(name: bytes) -> None:
    assert fold(name) in STRIPPED


@pytest.mark.parametrize(
    "name", [b"Accept", b"Host", b"Content-Length", b"X-Authuser", b"X-Auth-Users", b"traceparent"]
)
def test_these_client_headers_are_kept(name: bytes) -> None:
    assert fold(name) not in STRIPPED


def test_configured_names_are_stripped() -> None:
    names = names_from({"user": "X-Principal", "email": "X_Principal_Email"})
    assert IdentityOutputs((IdentityHeaders(names),)).stripped == STRIPPED | {b"x-principal", b"x-principal-email"}
    assert identity_lines(names, grant()) == b"X-Principal: u1\r\nX_Principal_Email: ada@example.org\r\n"
    assert names_from("remote-user") is PRESETS["remote-user"]


@pytest.mark.parametrize(
    "source",
    [
        "nonsense", "", {}, {"user": ""}, {"user": "a b"}, {"user": "a:"}, {"user": "X\r\nY"}, {"user": "é"},
        {"wife": "X-Wife"}, {"user": "Host"}, {"user": "content_length"}, {"user": "Authorization"},
        {"user": "X-Forwarded-For"}, {"user": "X-Id", "email": "x_id"},
    ],
)  # fmt: skip
def test_a_name_that_cannot_carry_an_identity_is_refused(source: str | dict[str, str]) -> None:
    with pytest.raises(IdentityNameError):
        names_from(source)


def test_a_value_is_visible_ascii() -> None:
    assert encode_value("plain~!\"'@:/") == "plain~!\"'@:/"
    assert encode_value("") == ""
    assert encode_value("a b\0\x7fé") == "a%20b%00%7F%C3%A9"
