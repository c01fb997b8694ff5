"""Clients that make a TLS connection for each request."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from bench.errors import BenchError
from bench.load.handshakes import Job, run
from bench.system.certificate import self_signed
from tests.support.process import HANGS_SECONDS
from tests.unit.bench.serving import ANSWER, REFUSAL


@contextmanager
def secured(directory: Path, answer: bytes, *, tickets: int = 2) -> Iterator[int]:
    """A TLS server that gives one answer on each connection; its port."""
    pair = self_signed(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.num_tickets = tickets
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                with suppress(OSError), context.wrap_socket(connection, server_side=True) as client:
                    client.recv(1 << 16)
                    client.sendall(answer)
                    client.unwrap()

        thread = Thread(target=serve, name="server")
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "tokens").write_text("one two")
    (tmp_path / "paths").write_text("/v1/a /v1/b")
    return Job(port=0, seconds=0.3, resume=False, seed=1, tokens_file=str(tmp_path / "tokens"),
               paths_file=str(tmp_path / "paths"), clients=2)  # fmt: skip


@pytest.mark.parametrize("resume", [False, True])
def test_each_request_has_a_handshake_of_the_kind_that_was_asked_for(resume: bool, job: Job, tmp_path: Path) -> None:
    with secured(tmp_path, ANSWER) as port:
        seconds = 0.3
        # Longer where a busy machine makes no second request of a client in that time.
        while (driven := run(replace(job, port=port, resume=resume, seconds=seconds))).requests <= job.clients:
            seconds *= 10
            assert seconds < HANGS_SECONDS
    assert driven.bytes_read == driven.requests * len(ANSWER)
    assert 0 < driven.p50_ms <= driven.p99_ms


def test_a_refusal_gives_no_figure(job: Job, tmp_path: Path) -> None:
    with secured(tmp_path, REFUSAL) as port, pytest.raises(BenchError, match="401"):
        run(replace(job, port=port))


def test_a_server_that_resumes_nothing_gives_no_figure_for_resumed_handshakes(job: Job, tmp_path: Path) -> None:
    # A client ends at its second request.
    whole = replace(job, resume=True, seconds=HANGS_SECONDS)
    with secured(tmp_path, ANSWER, tickets=0) as port, pytest.raises(BenchError, match="a full one"):
        run(replace(whole, port=port))
