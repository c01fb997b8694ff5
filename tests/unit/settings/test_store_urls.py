"""The store of several nodes: its addresses, its passwords, and what it needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import ConfigurationError, ConfigurationProblem
from proxy.settings.checks import stores
from proxy.settings.load import load
from proxy.settings.model import Settings
from proxy.settings.store_urls import PostgresqlUrl, with_password, without_password
from proxy.store.dialects import postgresql_dsn
from proxy.supervisor.errors import ReloadRefused
from proxy.supervisor.reload import refuse_fixed

KEY = "k" * 40
PASSWORD = "hunter2"
URL = "postgresql://patgate@db/patgate"
Problems = Callable[..., list[ConfigurationProblem]]


def settings(store: str = URL, **environ: str) -> Settings:
    variables = {f"PATGATE_{name.upper()}": value for name, value in environ.items()}
    return load(None, {"PATGATE_STORE": store, "PATGATE_SECRET_KEY": KEY, **variables})


@pytest.fixture
def problems(tmp_path: Path) -> Problems:
    """The problems of a configuration file, none of which may contain the password."""

    def found(text: str, **environ: str) -> list[ConfigurationProblem]:
        file = tmp_path / "patgate.yaml"
        file.write_text(text)
        with pytest.raises(ConfigurationError) as raised:
            load(file, environ)
        assert PASSWORD not in str(raised.value)
        return list(raised.value.problems)

    return found


@pytest.mark.parametrize(
    ("url", "hosts", "database", "user", "password"),
    [
        ("postgresql://u@h/d", (("h", 5432),), "d", "u", ""),
        ("postgresql://h/d", (("h", 5432),), "d", "", ""),
        ("postgresql://u:p%40%2Fs@H.example:5433/my%20d", (("h.example", 5433),), "my d", "u", "p@/s"),
        ("postgresql://u@10.0.0.1,db2:6432,[::1]:7/d", (("10.0.0.1", 5432), ("db2", 6432), ("::1", 7)), "d", "u", ""),
        ("postgresql://u@/d?host=/run/postgresql", (), "d", "u", ""),
        ("postgresql:///d?host=/run/postgresql", (), "d", "", ""),
        ("postgresql://u@h/d?sslmode=verify-full&sslrootcert=/etc/ca%20x.pem", (("h", 5432),), "d", "u", ""),
        (
            "postgresql://u:p@h/d?sslmode=verify-full&sslrootcert=system&connect_timeout=9",
            (("h", 5432),),
            "d",
            "u",
            "p",
        ),
        ("postgresql://u@/d?host=/run/x&port=5433&application_name=a%2Bb", (), "d", "u", ""),
        ("postgresql://u@h/d?sslmode=require&sslcert=/a&sslkey=/b", (("h", 5432),), "d", "u", ""),
        ("postgresql://u@h,i:1/d?target_session_attrs=primary", (("h", 5432), ("i", 1)), "d", "u", ""),
    ],
)
def test_an_address_has_these_parts_for_the_dialect_too(
    url: str, hosts: tuple[tuple[str, int], ...], database: str, user: str, password: str
) -> None:
    found = PostgresqlUrl.parse(url)
    assert (found.hosts, found.database, found.user, found.password) == (hosts, database, user, password)
    opened = postgresql_dsn.parse(url)
    where = hosts or ((found.parameters["host"], int(found.parameters.get("port", "5432"))),)
    named = tuple((host.lower(), port) for host, port in opened.hosts)
    assert (named, opened.database, opened.password or "") == (where, database, password)
    assert opened.user == user or not user
    assert (opened.sslmode, opened.application_name) == (
        found.parameters.get("sslmode", "prefer"),
        found.parameters.get("application_name", "patgate"),
    )
    assert [opened.sslrootcert, opened.sslcert] == [found.parameters.get(name) for name in ("sslrootcert", "sslcert")]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hunter2", "must be sqlite or postgresql://user@host/database"),
        ("postgres://u:hunter2@h/d", "must be sqlite or postgresql://user@host/database"),
        ("postgresql+asyncpg://u:hunter2@h/d", "must be sqlite or postgresql://user@host/database"),
        ("postgresql://u:hunter2@h", "names no database"),
        ("postgresql://u:hunter2@h/", "names no database"),
        ("postgresql://u:hunter2@/d", "names no host"),
        ("postgresql://:hunter2@h/d", "has no user"),
        ("postgresql://u:hunter2@h:0/d", "the port must be a number from 1 to 65535"),
        ("postgresql://u:hunter2@h:x/d", "the port must be a number from 1 to 65535"),
        ("postgresql://u:hunter2@h,,i/d", "the host is neither an IP address nor a host name"),
        ("postgresql://u:hunter2@h,H:5432/d", "names a host twice"),
        ("postgresql://u:hunter2@h/d?host=/run", "names a host before the database and another in its parameter host"),
        ("postgresql://u:12/hunter2@h/d", "percent-encoded"),
        ("postgresql://u:x@hunter2@h/d", "percent-encoded"),
        ("postgresql://u:x?hunter2@h/d", "percent-encoded"),
        ("postgresql://u:x#hunter2@h/d", "percent-encoded"),
        ("postgresql://u:x:hunter2@h/d", "percent-encoded"),
        ("postgresql://u:hunter2@h/d#x", "percent-encoded"),
        ("postgresql://u:hunter2%@h/d", "must consist of visible ASCII characters"),
        ("postgresql://u:hunter2é@h/d", "must consist of visible ASCII characters"),
        ("postgresql://u:hunter2%ff@h/d", "not UTF-8"),
        ("postgresql://u:hunter2%00@h/d", "NUL"),
        ("postgresql://u@h/d?password=hunter2", "must not have its password in the query"),
        (
            "postgresql://u@h/d?hunter2=1",
            "has an unknown parameter; known are application_name, connect_timeout, host,",
        ),
        ("postgresql://u:hunter2@h/d?", "has an unknown parameter"),
        ("postgresql://u@h/d?sslmode=hunter2", "sslmode must be disable, allow, prefer, require, verify-ca or verify-"),
        ("postgresql://u@h/d?sslmode=", "has no value for its parameter sslmode"),
        ("postgresql://u@h/d?sslmode=require&sslmode=disable", "has the parameter sslmode twice"),
        ("postgresql://u@h/d?sslrootcert=hunter2.pem", "sslrootcert must be an absolute path"),
        ("postgresql://u@/d?host=hunter2", "host must be an absolute path"),
        ("postgresql://u@h/d?sslmode=require&sslrootcert=/a+hunter2", "write %2B"),
        (
            "postgresql://u@h/d?sslmode=verify-full&sslcert=/a&sslkey=/hunter2",
            "needs sslrootcert with sslmode=verify-f",
        ),
        (
            "postgresql://u@h/d?sslmode=verify-ca&sslrootcert=system",
            "needs sslmode=verify-full with sslrootcert=system",
        ),
        ("postgresql://u@h/d?sslmode=prefer&sslrootcert=/hunter2", "has certificates, and needs sslmode=require"),
        ("postgresql://u@h/d?target_session_attrs=any", "target_session_attrs must be read-write or primary"),
        ("postgresql://u@h/d?connect_timeout=0", "connect_timeout must be a number of seconds from 1 to 60"),
        ("postgresql://u@h/d?connect_timeout=1e9", "connect_timeout must be a number of seconds from 1 to 60"),
        ("postgresql://u@h/d?port=1", "write it behind the host"),
        ("postgresql://u@/d?host=/run&port=70000", "the port must be a number from 1 to 65535"),
        ("postgresql://u@h/d?sslkey=/hunter2", "needs both or none of its parameters sslcert and sslkey"),
    ],
)
def test_a_wrong_address_is_one_problem_that_repeats_none_of_it(problems: Problems, url: str, message: str) -> None:
    found = problems("brand: acme\n", PATGATE_STORE=url, PATGATE_SECRET_KEY=KEY)
    assert [problem.path for problem in found] == ["PATGATE_STORE"]
    assert message in found[0].message


def test_a_session_is_never_on_the_embedded_store(problems: Problems) -> None:
    [problem] = problems(f"store: {URL}\nsecret_key: {KEY}\nstore_session: sqlite\n")
    assert (problem.line, problem.message) == (3, "must be postgresql://user@host/database")


def test_every_problem_of_a_store_is_reported_at_once_with_its_line(problems: Problems) -> None:
    found = problems(
        f"store: postgresql://u:{PASSWORD}@h/d?sslmode=require&sslrootcert=/none.pem\nbrand: 1\n"
        f"store_session: postgresql://u:{PASSWORD}@h/d\nstore_password: {PASSWORD}\nfailover: always\nlease: 61s\n"
    )
    assert [(problem.line, problem.path) for problem in found] == [
        *((1, "store"),) * 3,
        (2, "brand"),
        (3, "store_session"),
        (5, "failover"),
        (6, "lease"),
    ]
    assert [problem.message for problem in found if problem.path == "store"] == [
        "needs secret_key, the same on all nodes: at least 32 random bytes, such as those of openssl rand -hex 32; "
        "PATGATE_SECRET_KEY_FILE can name a file with it",
        "contains a password, and store_password is another; keep one of the two (line 4)",
        "the file of its parameter sslrootcert cannot be read: No such file or directory",
    ]
    assert found[5].message == 'must be refuse or synchronous, not "always"'


def test_settings_of_several_nodes_are_mistakes_with_the_embedded_store(problems: Problems) -> None:
    text = f"store_session: {URL}\nstore_password: {PASSWORD}\nstore_feed: poll\nfailover: refuse\n"
    found = problems("store: sqlite\n" + text)
    assert [problem.line for problem in found] == [2, 3, 4, 5]
    assert {problem.message for problem in found} == {"has no effect, because store is sqlite (line 1)"}
    assert {problem.message for problem in problems(text)} == {"has no effect, because store is sqlite"}


def test_a_lease_of_several_nodes_is_not_longer_than_an_answer_may_wait(problems: Problems) -> None:
    assert settings(lease="20s").lease == 20.0
    (found,) = problems(f"store: {URL}\nsecret_key: {'k' * 64}\nlease: 21s\n")
    assert (found.path, found.line) == ("lease", 3)
    assert found.message == "must be at most 20s with PostgreSQL: a change may have to wait that long (line 1)"
    assert load(None, {"PATGATE_LEASE": "60s"}).lease == 60.0, "an embedded store has no other node"


def test_a_node_without_the_driver_is_told_the_extra(problems: Problems, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where the driver is not installed: the import system does not find it."""
    monkeypatch.delitem(sys.modules, "asyncpg", raising=False)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    [problem] = problems(f"secret_key: {KEY}\nstore: {URL}\n")
    assert (problem.line, problem.path) == (2, "store")
    assert problem.message == "needs the extra patgate[postgres], which is not installed (no asyncpg)"


def test_the_lease_is_short_with_several_nodes_unless_it_is_configured() -> None:
    assert settings().lease == 2.0
    assert settings(lease="10s").lease == 10.0
    assert load(None, {}).lease == 5.0
    handed = settings(lease="5s")
    assert Settings.from_boot_json(handed.to_boot_json()) == handed


def test_the_password_of_a_file_is_used_for_both_addresses(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("p@s/s:#?%w\n")
    found = settings(store_password_file=str(file), store_session="postgresql://patgate@db:6432/patgate")
    assert found.store_address() == "postgresql://patgate:p%40s%2Fs%3A%23%3F%25w@db/patgate"
    assert found.session_address() == "postgresql://patgate:p%40s%2Fs%3A%23%3F%25w@db:6432/patgate"
    assert PostgresqlUrl.parse(found.store_address()).password == "p@s/s:#?%w"
    assert settings(store_password="x").session_address() == "postgresql://patgate:x@db/patgate"
    assert load(None, {}).store_address() == "sqlite"


def test_only_the_authority_gets_a_password() -> None:
    for found in (
        settings(f"postgresql://patgate:{PASSWORD}@db/patgate", store_session=f"postgresql://p:{PASSWORD}@db/patgate"),
        settings(store_password=PASSWORD),
    ):
        handed = Settings.from_boot_json(found.to_boot_json())
        assert handed == found
        assert PASSWORD in handed.store_address()
        assert PASSWORD in handed.session_address()
        for form in (
            repr(found),
            str(found),
            found.to_worker_json(),
            found.model_dump_json(),
            json.dumps(found.model_dump(mode="json")),
            repr(PostgresqlUrl.parse(found.store_address())),
        ):
            assert PASSWORD not in form
        assert Settings.from_boot_json(found.to_worker_json()).store_password is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite", "sqlite"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        (
            "postgresql://u:p@h:5432,i/d?sslmode=require&sslrootcert=/a@b:c",
            "postgresql://u:***@h:5432,i/d?sslmode=require&sslrootcert=/a@b:c",
        ),
        (
            "postgresql://u@h:5432/d?sslmode=require&sslrootcert=/a@b",
            "postgresql://u@h:5432/d?sslmode=require&sslrootcert=/a@b",
        ),
        ("postgresql://u:p@ss@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:p/s@h/d", "postgresql://u:***@h/d"),
    ],
)
def test_a_stores_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_any_password_survives_its_way_into_the_address(password: str) -> None:
    for url in ("postgresql://u@h:1,i/d?sslmode=require", "postgresql://u:old@h/d", "postgresql://u@/d?host=/run"):
        found, given_url = PostgresqlUrl.parse(with_password(url, password)), PostgresqlUrl.parse(url)
        assert found.password == password
        assert (found.user, found.hosts, found.database, found.parameters) == (
            given_url.user,
            given_url.hosts,
            given_url.database,
            given_url.parameters,
        )


@pytest.mark.parametrize(
    ("store", "warned"),
    [
        (URL, True),
        (f"{URL}?sslmode=require", True),
        (f"{URL}?sslmode=verify-full&sslrootcert=system", False),
        ("postgresql://u@127.0.0.1,localhost,[::1]/d", False),
        ("postgresql://u@localhost,db/d", True),
        ("postgresql://u@/d?host=/run/postgresql", False),
    ],
)
def test_an_unverified_server_on_the_network_is_a_warning(store: str, warned: bool) -> None:
    assert [warning.loc for warning in stores.unverified(settings(store))] == [("store",)] * warned


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("store", "postgresql://patgate@other/patgate"),
        ("store_session", "postgresql://patgate@other/patgate"),
        ("store_password", "other"),
        ("store_feed", "poll"),
        ("failover", "synchronous"),
    ],
)
def test_only_a_restart_changes_the_store(name: str, other: str) -> None:
    before = settings(store_password=PASSWORD)
    after = settings(**{"store_password": PASSWORD, name: other})
    message = rf"^The configuration was not reloaded: {name} can only change when patgate is restarted\.$"
    with pytest.raises(ReloadRefused, match=message):
        refuse_fixed(before, after)
    refuse_fixed(before, settings(store_password=PASSWORD, lease="3s"))
