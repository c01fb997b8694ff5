"""What is a name in `Host`."""

from __future__ import annotations

import pytest

from proxy.gateway.grammar import host_name

LABEL = b"a" * 63
LONGEST = b".".join((LABEL, LABEL, LABEL, LABEL))


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        (b"example.com", "example.com"),
        (b"EXAMPLE.com:8080", "example.com"),
        (b"example.com.", "example.com."),
        (b"example.com.:443", "example.com."),
        (b"a", "a"),
        (b"under_score.x-y", "under_score.x-y"),
        (b"127.0.0.1:80", "127.0.0.1"),
        (b"[::1]:80", "[::1]"),
        (b"[::]", "[::]"),
        (b"[2001:DB8::1]", "[2001:db8::1]"),
        (b"[::ffff:192.0.2.1]:65535", "[::ffff:192.0.2.1]"),
        (b"example.com:", "example.com"),
        (LABEL + b".com", LABEL.decode() + ".com"),
        (LONGEST, LONGEST.decode()),
        (LONGEST + b":65535", LONGEST.decode()),
    ],
)
def test_names_and_addresses_have_one_form(authority: bytes, name: str) -> None:
    assert host_name(authority) == name


@pytest.mark.parametrize(
    "authority",
    [
        b"",
        b".",
        b".com",
        b"a..b",
        b"a.b..",
        b"..a",
        b"%61dmin.example.com",
        b"example%2ecom",
        b"a" * 64,
        b"a" * 64 + b".com",
        b"com." + b"a" * 64,
        # 256 bytes of name, with and without what may follow a name.
        LONGEST + b".",
        LONGEST + b".:80",
        b"a." + LONGEST,
        b"a" * 30_000,
        b"user@example.com",
        b"example.com:80:80",
        b"example.com:http",
        b"example.com:123456",
        b"example.com/",
        b"example.com?",
        b"example com",
        b"a,b",
        b"caf\xe9.example",
        b"[]",
        b"[::1",
        b"::1",
        b"[::1]x",
        b"[" + b":" * 46 + b"]",
        b"[fe80::1%25eth0]",
        b"[v1.x]",
    ],
)
def test_what_is_no_name_has_no_form(authority: bytes) -> None:
    assert host_name(authority) is None
