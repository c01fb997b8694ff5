"""Addresses: which listeners collide, and which values are no addresses."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from proxy.settings.addresses import (
    Bind,
    BindAddress,
    HostField,
    ServerAddress,
    TrustedNetwork,
    collides,
    parse_network,
)


@pytest.mark.parametrize(
    ("first", "second", "collide"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("127.0.0.1:80", "127.0.0.1:81", False),
        ("127.0.0.1:80", "127.0.0.2:80", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        ("0.0.0.0:80", "127.0.0.1:81", False),
        ("0.0.0.0:0", "127.0.0.1:0", False),
        ("[::]:80", "[::1]:80", True),
        ("[::]:80", "127.0.0.1:80", False),
        ("0.0.0.0:80", "[::1]:80", False),
        ("0.0.0.0:80", "[::]:80", False),
        ("[::1]:80", "127.0.0.1:80", False),
        ("0.0.0.0:80", "gate.example:80", True),
        ("[::]:80", "gate.example:80", True),
        ("127.0.0.1:80", "gate.example:80", False),
        ("gate.example:80", "gate.example:80", True),
    ],
)
def test_listeners_collide_on_one_port_of_one_address_or_of_all_addresses_of_its_family(
    first: str, second: str, collide: bool
) -> None:
    one, other = Bind.parse(first), Bind.parse(second)
    assert collides(one, other) is collides(other, one) is collide


@pytest.mark.parametrize("value", [5, None, ["127.0.0.1:80"], True])
@pytest.mark.parametrize("kind", [BindAddress, ServerAddress], ids=["bind", "server"])
def test_an_address_that_is_not_text_is_refused_with_an_example(kind: Any, value: object) -> None:
    with pytest.raises(ValidationError, match="must be an address such as"):
        TypeAdapter(kind).validate_python(value)


def test_parsing_a_network_value_returns_it_unchanged() -> None:
    network = parse_network("192.0.2.0/24")
    assert parse_network(network) == network


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("App.internal", "app.internal"),
        ("app.internal:8080", "app.internal:8080"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("[::1]", "[::1]"),
        ("[::1]:65535", "[::1]:65535"),
    ],
)
def test_a_host_field_keeps_its_port(written: str, sent: str) -> None:
    assert TypeAdapter(HostField).validate_python(written) == sent


@pytest.mark.parametrize("written", ["app.internal:0", "app.internal:65536", "app.internal:", "[::1]:0", "::1", "a b"])
def test_an_invalid_host_field_is_refused(written: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(HostField).validate_python(written)


@pytest.mark.parametrize("kind", [BindAddress, ServerAddress, TrustedNetwork], ids=["bind", "server", "network"])
def test_the_schema_says_that_an_address_is_text(kind: Any) -> None:
    assert TypeAdapter(kind).json_schema() == {"type": "string"}
