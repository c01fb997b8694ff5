"""Addresses beside one another: which listeners would fight for a port, and what is no address at all."""

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
    ("first", "second", "fight"),
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
def test_listeners_fight_for_one_port_of_one_address_or_of_every_address_of_its_family(
    first: str, second: str, fight: bool
) -> None:
    one, other = Bind.parse(first), Bind.parse(second)
    assert collides(one, other) is collides(other, one) is fight


@pytest.mark.parametrize("value", [5, None, ["127.0.0.1:80"], True])
@pytest.mark.parametrize("kind", [BindAddress, ServerAddress], ids=["bind", "server"])
def test_what_is_no_text_is_no_address_and_is_told_how_to_write_one(kind: Any, value: object) -> None:
    with pytest.raises(ValidationError, match="must be an address such as"):
        TypeAdapter(kind).validate_python(value)


def test_a_network_that_was_read_already_is_the_same_network() -> None:
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
def test_a_host_field_that_no_client_could_send_is_refused(written: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(HostField).validate_python(written)


@pytest.mark.parametrize("kind", [BindAddress, ServerAddress, TrustedNetwork], ids=["bind", "server", "network"])
def test_the_schema_says_that_an_address_is_text(kind: Any) -> None:
    assert TypeAdapter(kind).json_schema() == {"type": "string"}
