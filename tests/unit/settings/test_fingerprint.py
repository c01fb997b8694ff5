"""The hash of a configuration: the same on all nodes, whatever belongs to one host."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.settings.fingerprint import config_hash
from proxy.settings.load import load
from proxy.settings.model import Settings

KEY = "k" * 40
STORE = "postgresql://patgate@db/patgate"


def settings(**environ: str) -> Settings:
    return load(
        None, {"PATGATE_STORE": STORE, "PATGATE_SECRET_KEY": KEY, "PATGATE_ROLES": "{viewer: [t:read]}", **environ}
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATA_DIR", "/elsewhere"),
        ("WORKERS", "7"),
        ("LISTEN__PROXY__BIND", "10.0.0.9:80"),
        ("LOG__LEVEL", "debug"),
        ("CACHE__ENTRIES", "5"),
        ("ARGON2__THREADS", "5"),
        ("STORE", "postgresql://patgate@db2/patgate"),
        ("STORE_PASSWORD", "hunter2"),
        ("STORE_SESSION", "postgresql://patgate@db3/patgate"),
        ("SECRET_KEY", "other" * 10),
        ("BRAND", "patgate"),
    ],
)
def test_what_belongs_to_one_host_and_secrets_and_defaults_do_not_count(name: str, value: str) -> None:
    assert config_hash(settings(**{f"PATGATE_{name}": value})) == config_hash(settings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BRAND", "acme"),
        ("ROLES", "{viewer: [t:list]}"),
        ("UPSTREAMS", '{app: {servers: ["http://127.0.0.1:1"]}}'),
        ("ROUTES", "[{path: /x, access: denied}]"),
        ("POLICY__REQUIRE_EXPIRY", "true"),
        ("CREDENTIALS", "[bearer]"),
        ("LEASE", "3s"),
        ("FAILOVER", "synchronous"),
        ("AUDIT__REQUESTS", "all"),
    ],
)
def test_what_decides_counts(name: str, value: str) -> None:
    assert config_hash(settings(**{f"PATGATE_{name}": value})) != config_hash(settings())


def test_the_order_of_routes_counts_and_that_of_roles_does_not() -> None:
    def routes(*paths: str) -> str:
        return config_hash(
            settings(PATGATE_ROUTES=f"[{', '.join(f'{{path: {path}, access: denied}}' for path in paths)}]")
        )

    def roles(*names: str) -> str:
        return config_hash(settings(PATGATE_ROLES=f"{{{', '.join(f'{name}: [t:read]' for name in names)}}}"))

    assert routes("/a", "/b") != routes("/b", "/a")
    assert roles("a", "b") == roles("b", "a")


def test_a_settings_object_that_was_handed_to_the_authority_has_the_same_hash() -> None:
    found: Any = settings(PATGATE_STORE_PASSWORD="hunter2")
    assert config_hash(Settings.from_boot_json(found.to_boot_json())) == config_hash(found)
