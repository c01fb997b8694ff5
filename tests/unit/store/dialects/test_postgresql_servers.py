"""A store is reached through TLS, a Unix socket, several hosts or a pooler, or refused with the reason."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.core.errors import StoreUnavailable
from proxy.core.model import Grant
from proxy.store.dialects.postgresql import PostgresqlDatabase
from proxy.store.dialects.postgresql_driver import Limits, Servers
from proxy.store.dialects.postgresql_dsn import parse
from proxy.store.store import Store
from tests.contract.kit import ADMIN, FINGERPRINT, Clock, Kit
from tests.support.certificates import Pair, pair
from tests.support.dialects import PATIENT, migrated_on
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import Postgres
from tests.support.process import LOOPBACK, free_port

_SESSION = (
    "synchronous_commit, idle_in_transaction_session_timeout, lock_timeout, statement_timeout, jit, tcp_user_timeout, "
    "tcp_keepalives_idle, tcp_keepalives_interval, tcp_keepalives_count"
)


async def works(url: str) -> None:
    """A store at this address opens; it can be changed and read."""
    store = await Store.open(url, key_fingerprint=FINGERPRINT)
    try:
        kit = Kit(store=store, clock=Clock())
        await kit.roles.sync_config(ADMIN, {"viewer": ["things:read"]})
        await kit.intact()
    finally:
        await store.close()


async def refusal(url: str, session: str | None = None) -> str:
    """Why the store is not opened. Neither the password nor the user is in it, nor in what caused it."""
    with pytest.raises(StoreUnavailable) as refused:
        store = await Store.open(url, key_fingerprint=FINGERPRINT, session=session)
        await store.close()
    error: BaseException | None = refused.value
    password = parse(url).password
    assert password
    while error is not None:
        assert password not in str(error) and password not in repr(error)
        error = error.__cause__
    return str(refused.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("tls"), "postgres")


@pytest.fixture(scope="module")
def secured(made: Pair) -> Iterator[Postgres]:
    """A server that offers TLS, and demands it from ``patgate``."""
    with Postgres(tls=(made.certificate, made.key)) as server:
        access = server.data / "pg_hba.conf"
        access.write_text("local all all scram-sha-256\nhostssl all all 127.0.0.1/32 scram-sha-256\n")
        server.reload()
        yield server


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca", "require", "prefer"])
async def test_a_server_is_reached_through_tls(secured: Postgres, made: Pair, mode: str) -> None:
    root = "" if mode == "prefer" else f"&sslrootcert={made.certificate}"
    url = migrated_on(secured) + f"?sslmode={mode}{root}"
    await works(url)
    connection = await Servers(parse(url), PATIENT).connect()
    assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is True
    await connection.close()


async def test_a_server_with_another_certificate_is_refused(secured: Postgres, made: Pair, tmp_path: Path) -> None:
    url = secured.create_database()
    other = pair(tmp_path, "other").certificate
    for mode in ("verify-full", "verify-ca", "require"):
        problem = await refusal(f"{url}?sslmode={mode}&sslrootcert={other}")
        assert "because its certificate is not valid for its name, or not signed by sslrootcert" in problem
    assert "certificate is not valid" in await refusal(f"{url}?sslmode=verify-full&sslrootcert=system")


async def test_the_name_of_the_server_counts_with_verify_full_alone(tmp_path: Path) -> None:
    elsewhere = pair(tmp_path, "elsewhere.example.org", local=False)
    with Postgres(tls=(elsewhere.certificate, elsewhere.key)) as server:
        url = f"{server.create_database()}?sslrootcert={elsewhere.certificate}&sslmode="
        assert "certificate is not valid for its name" in await refusal(f"{url}verify-full")
        await works(f"{url}verify-ca")


async def test_without_tls_neither_side_is_content(secured: Postgres, postgres: Postgres, postgres_url: str) -> None:
    assert "refuses the user or the password" in await refusal(f"{secured.create_database()}?sslmode=disable")
    assert "it offers no TLS" in await refusal(f"{postgres_url}?sslmode=require")


async def test_a_server_is_reached_by_its_unix_socket(postgres: Postgres) -> None:
    await works(postgres.socket_url(migrated_on(postgres).rpartition("/")[2]))


async def test_what_is_wrong_with_a_server_is_said(postgres: Postgres, postgres_url: str) -> None:
    name = postgres_url.rpartition("/")[2]
    wrong = postgres_url.replace(postgres.owner_password, "hunter2hunter2")
    assert "because it refuses the user or the password" in await refusal(wrong)
    assert "because there is no such database" in await refusal(postgres.url("nothing"))
    closed = f"{LOOPBACK}:{free_port()}"
    found = await refusal(postgres.url(name, host=closed))
    assert found == f"the store cannot be used now because no server listens there: postgresql://{closed}/{name}"
    assert "because its host name is unknown" in await refusal(postgres.url(name, host="nowhere.invalid"))
    missing = f"postgresql://u:hunter2hunter2@/d?host={postgres.directory}&port=1"
    assert "because no server listens there" in await refusal(missing)


async def test_a_server_that_does_not_answer_is_given_up(postgres: Postgres) -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:
        place = f"{LOOPBACK}:{silent.getsockname()[1]}"
        found = await refusal(postgres.url("d", host=place, parameters="connect_timeout=1"))
    assert "because it does not answer in time" in found


async def test_of_several_hosts_the_first_that_can_be_written_to_is_used(postgres: Postgres) -> None:
    url = migrated_on(postgres)
    name, port = url.rpartition("/")[2], postgres.port
    closed = f"{LOOPBACK}:{free_port()}"
    with Postgres(copy_of=postgres) as standby:
        hosts = f"{closed},{LOOPBACK}:{standby.port},{LOOPBACK}:{port}"
        await works(postgres.url(name, host=hosts, parameters="target_session_attrs=read-write"))
        for alone in (f"{LOOPBACK}:{standby.port}", f"{closed},{LOOPBACK}:{standby.port}"):
            assert "because it can only be read, as a standby" in await refusal(postgres.url(name, host=alone))


async def test_the_host_that_answered_last_is_tried_first(postgres: Postgres) -> None:
    url = migrated_on(postgres)
    name = url.rpartition("/")[2]
    with socket.create_server((LOOPBACK, 0)) as silent:
        hosts = f"{LOOPBACK}:{silent.getsockname()[1]},{LOOPBACK}:{postgres.port}"
        servers = Servers(parse(postgres.url(name, host=hosts, parameters="connect_timeout=1")), PATIENT)
        await (await servers.connect()).close()
        silent.settimeout(0.01)
        silent.accept()[0].close()
        await (await servers.connect()).close()
        with pytest.raises(TimeoutError):
            silent.accept()


async def test_a_connection_notices_that_the_other_side_has_gone(postgres: Postgres, postgres_url: str) -> None:
    connection = await Servers(parse(postgres_url), replace(Limits(), network=3.0)).connect()
    given = connection.transport.get_extra_info("socket")
    with socket.socket(fileno=socket.dup(given.fileno())) as own:
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3000
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 2
    assert await connection.fetchval("SHOW tcp_keepalives_idle") == "2"
    await connection.close()


@pytest.fixture(scope="module")
def pooler(postgres: Postgres) -> Iterator[PgBouncer]:
    with PgBouncer(postgres) as made:
        yield made


@pytest.fixture(scope="module")
def tolerant(postgres: Postgres) -> Iterator[PgBouncer]:
    """A pooler that accepts the parameters of a session, and ignores them."""
    with PgBouncer(postgres, {"ignore_startup_parameters": _SESSION}) as made:
        yield made


async def test_a_store_works_through_a_transaction_pooler(postgres: Postgres, pooler: PgBouncer) -> None:
    url = migrated_on(postgres)
    store = await Store.open(pooler.through(url), key_fingerprint=FINGERPRINT, session=url)
    try:
        kit = Kit(store=store, clock=Clock())
        await kit.basics()
        made = [await kit.mint("ann@example.org", f"t{number}") for number in range(8)]
        # More at a time than the pooler has sessions, so statements of one connection run on several.
        verdicts = await asyncio.gather(*(kit.resolve(one.view.prefix) for one in made for _ in range(10)))
        assert all(isinstance(verdict, Grant) for verdict in verdicts)
        await kit.intact()
        async with store._database.write() as connection:
            for setting, value in (("synchronous_commit", "on"), ("idle_in_transaction_session_timeout", "1s")):
                assert (await connection.exec_driver_sql(f"SHOW {setting}")).scalar_one() == value
        assert postgres.psql(f"SELECT count(*) <= 3 FROM pg_stat_activity WHERE datname = '{url.rpartition('/')[2]}'")
    finally:
        await store.close()


async def test_a_pooler_in_the_place_of_a_session_is_refused(
    postgres: Postgres, pooler: PgBouncer, tolerant: PgBouncer
) -> None:
    url = migrated_on(postgres)
    problem = "because a connection pooler stands before it, and store_session must be an address without one"
    for one in (pooler, tolerant):
        assert problem in await refusal(one.through(url))
        assert problem in await refusal(url, session=one.through(url) + "?connect_timeout=60")
        assert f"store_session postgresql://{LOOPBACK}:{one.port}/" in await refusal(url, session=one.through(url))


async def test_a_session_of_another_database_is_refused(postgres: Postgres, pooler: PgBouncer) -> None:
    found = await refusal(pooler.through(migrated_on(postgres)), session=migrated_on(postgres))
    assert "store and store_session do not lead to the same database" in found


def test_what_is_shown_of_a_database_has_no_password(postgres: Postgres) -> None:
    database = PostgresqlDatabase(postgres.url("d"))
    shown = (
        database.location,
        repr(database),
        str(database.__dict__),
        repr(Servers(parse(postgres.url("d")), PATIENT)),
    )
    assert not any(postgres.owner_password in text for text in shown)
