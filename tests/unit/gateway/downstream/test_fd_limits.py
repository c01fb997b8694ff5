"""The number of client connections leaves descriptors for their backend connections."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from proxy.gateway.downstream.fd_limits import GENEROUS, OWN, ConnectionLimits, connections, raise_limit
from proxy.settings.model import Settings

TRUSTED = {"trusted": ["127.0.0.1"]}


def settings(*, servers: int = 1, max_idle: int = 64, **listen: Any) -> Settings:
    urls = [f"http://10.0.0.{number}" for number in range(1, servers + 1)]
    upstreams = {"app": {"servers": urls, "max_idle": max_idle}} if servers else {}
    return Settings.model_validate({"listen": listen, "upstreams": upstreams})


@pytest.mark.parametrize("files", [1, 4, OWN, 128, 256, 1024, 4096, 20_000, 1 << 20])
@pytest.mark.parametrize("servers", [0, 1, 50])
@pytest.mark.parametrize(
    "listen",
    [
        {},
        {"forward_auth": TRUSTED},
        {"ext_authz": TRUSTED, "forward_auth": TRUSTED},
        {"proxy": {"connections": 10_000}},
    ],
)
def test_every_request_has_a_descriptor_for_its_backend(files: int, servers: int, listen: dict[str, Any]) -> None:
    chosen = settings(servers=servers, **listen)
    room = connections(chosen, files)
    assert room.proxy >= 1
    assert (room.forward_auth > 0) == (chosen.listen.forward_auth is not None)
    assert (room.ext_authz > 0) == (chosen.listen.ext_authz is not None)
    # Even a limit far too low serves some connections.
    if files >= OWN + 8:
        assert 2 * room.proxy + room.forward_auth + room.ext_authz + OWN <= files


def test_the_settings_count_as_far_as_descriptors_allow() -> None:
    both = settings(proxy={"connections": 100}, forward_auth={**TRUSTED, "connections": 7})
    assert connections(both, 20_000) == ConnectionLimits(proxy=100, forward_auth=7, ext_authz=0)
    assert connections(settings(proxy={"connections": 1000}), 1024).proxy == (1024 - OWN - 64) // 2
    assert connections(settings(), 1 << 20) == ConnectionLimits(proxy=GENEROUS, forward_auth=0, ext_authz=0)


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        assert raise_limit() == (1 << 20 if hard == resource.RLIM_INFINITY else hard)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
