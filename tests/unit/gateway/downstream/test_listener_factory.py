"""Listeners as the settings describe them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from proxy.gateway.downstream.listener_factory import FORWARD_AUTH, PROXY, listener_limits
from proxy.settings.model import Settings

SECOND = 1_000_000_000


def settings(**listen: Any) -> Settings:
    return Settings.model_validate(
        {
            "listen": listen,
            "limits": {"header_bytes": 10_001, "request_line": 2_002, "body": 30_003},
            "timeouts": {
                "handshake": 4,
                "request_head": 5,
                "request_body_idle": 6,
                "keepalive": 7,
                "tunnel": 8,
                "stream": 9,
                "client_rate": 10,
            },
        }
    )


def test_every_limit_of_a_listener_comes_from_its_own_setting() -> None:
    limits = listener_limits(PROXY, settings(proxy={"half_close": True}))
    assert {field.name: getattr(limits, field.name) for field in fields(limits)} == {
        "max_head": 10_001,
        "max_request_line": 2_002,
        "max_body": 30_003,
        "handshake_ns": 4 * SECOND,
        "head_ns": 5 * SECOND,
        "body_idle_ns": 6 * SECOND,
        "keepalive_ns": 7 * SECOND,
        "answer_ns": 60 * SECOND,
        "tunnel_ns": 8 * SECOND,
        "stream_ns": 9 * SECOND,
        "client_rate": 10,
        "half_close": True,
    }


@pytest.mark.parametrize("name", [PROXY, FORWARD_AUTH])
def test_a_listener_may_have_narrower_limits_of_its_own(name: str) -> None:
    limits = listener_limits(name, settings(**{name: {"limits": {"body": 7}}}))
    assert (limits.max_body, limits.max_head) == (7, 10_001)


def test_callers_of_forward_auth_are_never_waited_for_after_a_half_close() -> None:
    assert not listener_limits(FORWARD_AUTH, settings(proxy={"half_close": True})).half_close
