"""The faulty proxy in front of a real PostgreSQL, used by a real client (psql)."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.faulty_proxy import Faults, FaultyProxy, Messages
from tests.support.postgres import Postgres, binary, name_of
from tests.support.process import LOOPBACK

CONNECT_SECONDS = "2"


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[FaultyProxy]:
    with FaultyProxy(f"{LOOPBACK}:{postgres.port}") as running:
        yield running


@pytest.fixture
def url(postgres: Postgres, postgres_url: str, proxy: FaultyProxy) -> str:
    return postgres.url(name_of(postgres_url), host=f"{LOOPBACK}:{proxy.port}")


def psql(url: str, sql: str) -> tuple[int, str]:
    """The exit status and both outputs."""
    done = subprocess.run(
        [binary("psql"), "-XAtq", url, "-f", "-"], input=sql, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={"PATH": os.environ["PATH"], "PGCONNECT_TIMEOUT": CONNECT_SECONDS}, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize("sslmode", ["disable", "prefer"])
def test_a_session_works_through_it(url: str, sslmode: str) -> None:
    big = "SELECT length(string_agg(repeat('x', 999), '')) FROM generate_series(1, 2000)"
    assert psql(f"{url}?sslmode={sslmode}", f"SELECT 1; {big}; SELECT repeat('y', 300000) = repeat('y', 300000)") == (
        0,
        "1\n1998000\nt",
    )


def test_notifications_are_left_out_and_nothing_else(url: str, proxy: FaultyProxy) -> None:
    listening = "LISTEN change; NOTIFY change, 'word'; SELECT 'after'"
    assert "word" in psql(url, listening)[1]
    proxy.command("notify off")
    assert psql(url, listening) == (0, "after")
    assert proxy.command("report")["dropped"] == 1
    proxy.command("mend")
    assert "word" in psql(url, listening)[1]


def test_a_commit_is_stored_and_its_writer_learns_nothing(
    url: str, proxy: FaultyProxy, postgres: Postgres, postgres_url: str
) -> None:
    postgres.psql("CREATE TABLE seen (word text); GRANT ALL ON seen TO PUBLIC", postgres_url)
    proxy.command("doubt on")
    status, output = psql(url, "BEGIN; INSERT INTO seen VALUES ('doubt'); COMMIT;")
    assert status != 0, output
    assert postgres.psql("SELECT word FROM seen", postgres_url) == "doubt"
    proxy.command("mend")
    assert psql(url, "BEGIN; INSERT INTO seen VALUES ('certain'); COMMIT; SELECT count(*) FROM seen") == (0, "2")


def test_a_commit_does_not_arrive_and_its_writer_learns_nothing(
    url: str, proxy: FaultyProxy, postgres: Postgres, postgres_url: str
) -> None:
    postgres.psql("CREATE TABLE unseen (word text); GRANT ALL ON unseen TO PUBLIC", postgres_url)
    proxy.command("lose on")
    status, output = psql(url, "BEGIN; INSERT INTO unseen VALUES ('lost'); COMMIT;")
    assert status != 0, output
    assert proxy.command("report")["lost"] == 1
    proxy.command("mend")
    assert psql(url, "BEGIN; INSERT INTO unseen VALUES ('kept'); COMMIT; SELECT word FROM unseen") == (0, "kept")


@pytest.mark.parametrize("fault", ["cut", "stall up", "stall down"])
def test_nobody_gets_through_until_it_is_mended(url: str, proxy: FaultyProxy, fault: str) -> None:
    proxy.command(fault)
    assert psql(url, "SELECT 1")[0] != 0
    proxy.command("mend")
    assert psql(url, "SELECT 1") == (0, "1")


def test_what_is_stalled_arrives_when_it_is_mended(url: str, proxy: FaultyProxy) -> None:
    client = subprocess.Popen(
        [binary("psql"), "-XAtq", url, "-f", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write("SELECT 'first';\n")
    client.stdin.flush()
    assert client.stdout.readline() == "first\n"
    proxy.command("stall up")
    client.stdin.write("SELECT 'second';\n")
    client.stdin.close()
    # A client that got its answer in spite of the fault would end; half a second is long for that.
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        assert client.poll() is None
        time.sleep(0.01)
    proxy.command("mend")
    assert client.stdout.read() == "second\n"
    assert client.wait() == 0
    client.stdout.close()


def test_answers_are_late_and_in_order(url: str, proxy: FaultyProxy) -> None:
    proxy.command("slow 300")
    begun = time.monotonic()
    assert psql(url, "SELECT 1; SELECT 2") == (0, "1\n2")
    # The server answers at least twice while a connection begins, and once to each statement.
    assert time.monotonic() - begun > 4 * 0.3
    proxy.command("mend")
    assert psql(url, "SELECT repeat('z', 200000) = repeat('z', 200000)") == (0, "t")


def message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def test_messages_are_found_however_their_bytes_arrive() -> None:
    parts = [
        message(b"D", b"x" * 5000), message(b"A", b"\0\0\0\1change\0\0"), message(b"Z", b"I"),
        message(b"C", b"UPDATE 1\0"), message(b"A", b"\0\0\0\1change\0\0"), message(b"D", b"A" * 9),
    ]  # fmt: skip
    wanted = b"".join(part for part in parts if part[:1] != b"A")
    for step in (1, 2, 3, 7, 64, 100_000):
        faults = Faults(notify=False)
        reader = Messages(faults)
        stream = b"".join(parts)
        passed = b"".join(reader.feed(stream[at : at + step]) for at in range(0, len(stream), step))
        assert passed == wanted
        assert faults.dropped == 2


def test_an_encrypted_connection_is_refused_because_it_cannot_be_read() -> None:
    reader = Messages(Faults())
    reader.encryption_asked = True
    with pytest.raises(ValueError, match="encrypted"):
        reader.feed(b"S")
    reader = Messages(Faults(notify=False))
    reader.encryption_asked = True
    assert reader.feed(b"N" + message(b"A", b"")) == b"N"
