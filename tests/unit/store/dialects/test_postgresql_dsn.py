"""An address of PostgreSQL is read as libpq reads it, or refused; nothing that it says is ignored or shown."""

from __future__ import annotations

import os
import pwd
import ssl
from pathlib import Path

import pytest

from proxy.core.errors import StoreUnavailable
from proxy.store.dialects.postgresql_dsn import PostgresqlAddress, parse
from tests.support.certificates import pair

URL = "postgresql://patgate:hunter2@db.example.org:6432/tokens"


def _refused(url: str) -> str:
    with pytest.raises(StoreUnavailable) as refused:
        parse(url)
    assert "hunter2" not in str(refused.value)
    return str(refused.value)


def test_an_address_has_a_user_a_password_a_host_a_port_and_a_database() -> None:
    found = parse(URL)
    assert (found.user, found.password, found.hosts) == ("patgate", "hunter2", (("db.example.org", 6432),))
    assert (found.database, found.sslmode, found.connect_timeout) == ("tokens", "prefer", 5.0)
    assert found == parse(URL.replace("postgresql://", "postgres://"))


@pytest.mark.parametrize(
    ("place", "hosts"),
    [
        ("one", (("one", 5432),)),
        ("one:1,two:2", (("one", 1), ("two", 2))),
        ("one,two:2,10.0.0.1", (("one", 5432), ("two", 2), ("10.0.0.1", 5432))),
        ("[::1]:6432,[fe80::1]", (("::1", 6432), ("fe80::1", 5432))),
        ("%2Frun%2Fpostgresql:6432", (("/run/postgresql", 6432),)),
    ],
)
def test_an_address_has_one_or_several_hosts(place: str, hosts: tuple[tuple[str, int], ...]) -> None:
    assert parse(f"postgresql://u@{place}/d").hosts == hosts


@pytest.mark.parametrize(
    ("query", "hosts"),
    [
        ("host=/run/postgresql", (("/run/postgresql", 5432),)),
        ("host=/run/postgresql&port=6432", (("/run/postgresql", 6432),)),
        ("host=one,two&port=6432", (("one", 6432), ("two", 6432))),
        ("host=one,two&port=1,2", (("one", 1), ("two", 2))),
    ],
)
def test_hosts_may_be_parameters(query: str, hosts: tuple[tuple[str, int], ...]) -> None:
    assert parse(f"postgresql:///d?{query}").hosts == hosts


def test_escapes_stand_for_any_character() -> None:
    found = parse("postgresql://p%40t:p%2F%3A%20ss@h/my%20data")
    assert (found.user, found.password, found.database) == ("p@t", "p/: ss", "my data")


def test_user_password_and_database_may_be_parameters() -> None:
    found = parse("postgresql://h?user=u&password=p%26q&dbname=d&application_name=n&connect_timeout=2")
    assert (found.user, found.password, found.database) == ("u", "p&q", "d")
    assert (found.application_name, found.connect_timeout) == ("n", 2.0)


def test_without_a_user_it_is_that_of_the_process_and_without_a_password_there_is_none() -> None:
    found = parse("postgresql:///d?host=/run/postgresql")
    assert (found.user, found.password) == (pwd.getpwuid(os.geteuid()).pw_name, None)
    assert parse("postgresql://u:@h/d").password == ""


def test_what_is_shown_of_an_address_has_no_password() -> None:
    found = parse("postgresql://patgate:hunter2@one:1,[::1]/tokens")
    assert found.location == "postgresql://one:1,[::1]:5432/tokens"
    assert parse("postgresql://u@/d?host=/run/postgresql").location == "postgresql:///run/postgresql/.s.PGSQL.5432/d"
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("mysql://u:hunter2@h/d", "must begin with postgresql://"),
        ("postgresql://u:hunter2@h", "names no database"),
        ("postgresql://u:hunter2@h/", "names no database"),
        ("postgresql://u:hunter2@/d", "names no host"),
        ("postgresql://u:hunter2@h,/d", "an empty host"),
        ("postgresql://u:hunter2@h:0/d", "a port that is not a number from 1 to 65535"),
        ("postgresql://u:hunter2@h:65536/d", "a port that is not"),
        ("postgresql://u:hunter2@h:x/d", "a port that is not"),
        ("postgresql://u:hunter2@h:²/d", "a port that is not"),
        ("postgresql://u:hunter2@[::1/d", "is not a URL"),
        ("postgresql://h/d#hunter2", "must be written as %23"),
        ("postgresql://u:hunter%002@h/d", "a NUL character"),
        ("postgresql://h/d?options=-c%20hunter2", "a parameter that is not supported; these are: host, port, user"),
        ("postgresql://h/d?sslcompression=hunter2", "a parameter that is not supported"),
        ("postgresql://h/d?sslmode=hunter2", "sslmode that is not one of: disable, allow, prefer, require, verify-ca"),
        ("postgresql://h/d?sslmode", "not NAME=VALUE"),
        ("postgresql://h/d?sslmode=require&sslmode=disable", "a parameter twice"),
        ("postgresql://h/d?sslmode=verify-full", "needs sslrootcert=FILE"),
        ("postgresql://h/d?sslmode=verify-ca&sslrootcert=system", "needs sslmode=verify-full"),
        ("postgresql://h/d?sslrootcert=ca.pem", "needs sslmode=require, verify-ca or verify-full"),
        ("postgresql://h/d?sslmode=require&sslkey=key.pem", "needs sslcert"),
        ("postgresql://h/d?target_session_attrs=any", "that is not read-write or primary: a standby is behind"),
        ("postgresql://h/d?target_session_attrs=standby", "a standby is behind"),
        ("postgresql://h/d?connect_timeout=0", "connect_timeout that is not a number of seconds from 1 to 60"),
        ("postgresql:///d?host=a,b&port=1,2,3", "another number of ports than of hosts"),
        ("postgresql://h/d?host=hunter2", "twice"),
        ("postgresql://h/d?port=1", "twice"),
        ("postgresql://u:hunter2@h/d?user=v", "twice"),
        ("postgresql://u:hunter2@h/d?password=v", "twice"),
        ("postgresql://u:hunter2@h/d?dbname=e", "twice"),
    ],
)
def test_an_address_that_cannot_be_followed_to_the_letter_is_refused(url: str, problem: str) -> None:
    assert problem in _refused(url)


def test_the_setting_that_holds_the_address_is_named() -> None:
    with pytest.raises(StoreUnavailable, match=r"^the address in store_session names no database$"):
        parse("postgresql://h", "store_session")


def _tls(parameters: str, host: str = "h") -> ssl.SSLContext | str | bool:
    return parse(f"postgresql://u@{host}/d?{parameters}").tls("/run/postgresql" if host == "socket" else host)


def test_each_sslmode_is_as_strict_as_libpq_says(tmp_path: Path) -> None:
    ca = pair(tmp_path).certificate
    assert (_tls("sslmode=disable"), _tls("sslmode=prefer"), _tls("sslmode=allow")) == (False, "prefer", "allow")
    assert _tls(f"sslmode=verify-full&sslrootcert={ca}", "socket") is False
    for parameters, checks_name, checks_issuer in (
        ("sslmode=require", False, ssl.CERT_NONE),
        (f"sslmode=require&sslrootcert={ca}", False, ssl.CERT_REQUIRED),
        (f"sslmode=verify-ca&sslrootcert={ca}", False, ssl.CERT_REQUIRED),
        (f"sslmode=verify-full&sslrootcert={ca}", True, ssl.CERT_REQUIRED),
        ("sslmode=verify-full&sslrootcert=system", True, ssl.CERT_REQUIRED),
    ):
        context = _tls(parameters)
        assert isinstance(context, ssl.SSLContext)
        assert (context.check_hostname, context.verify_mode) == (checks_name, checks_issuer), parameters
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    made = pair(tmp_path)
    cert, key = made.certificate, made.key
    (tmp_path / "odd").write_text("hunter2")
    for parameters, problem in (
        (f"sslrootcert={tmp_path / 'missing'}", "sslrootcert cannot be used because a file does not exist"),
        (f"sslrootcert={tmp_path / 'odd'}", "sslrootcert cannot be used"),
        (f"sslcert={tmp_path / 'odd'}&sslkey={key}", "sslcert and sslkey cannot be used"),
        (f"sslcert={cert}&sslkey={tmp_path / 'missing'}", "sslcert and sslkey cannot be used because"),
    ):
        with pytest.raises(StoreUnavailable, match=problem) as refused:
            _tls(f"sslmode=require&{parameters}")
        assert "hunter2" not in str(refused.value)
    assert isinstance(_tls(f"sslmode=require&sslcert={cert}&sslkey={key}"), ssl.SSLContext)


def test_an_address_is_a_value() -> None:
    assert parse(URL) == parse(URL) and hash(parse(URL)) == hash(parse(URL))
    assert isinstance(parse(URL), PostgresqlAddress)
