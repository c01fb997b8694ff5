"""Two nginx as one upstream: responses to clients while one of them dies, comes back, or reports bad health."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.test_metrics import scrape
from tests.support.backends import program
from tests.support.gateway import Patgate
from tests.support.load import Load
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until

NGINX = """\
user {user};
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen {host}:{port};
        location / {{ return 200 "{name}"; }}
        location = /healthz {{ alias {directory}/well; }}
    }}
}}
"""


class Nginx:
    """One nginx that answers with its name; restarts on the same port, and is healthy while its file exists."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.directory = directory / name
        self.directory.mkdir()
        self.well = self.directory / "well"
        self.well.write_text("well")
        config = self.directory / "nginx.conf"
        facts = {"directory": self.directory, "user": getpass.getuser(), "host": LOOPBACK}
        config.write_text(NGINX.format(port=self.port, name=name, **facts))
        self._argv = [program("nginx"), "-c", str(config), "-p", str(self.directory), "-e", "stderr"]
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        self._process = Process(self._argv, name=self.name, directory=self.directory)
        wait_until(lambda: accepts(self.port), f"{self.name} listening", process=self._process)

    def kill(self) -> None:
        """Send SIGKILL to all its processes, and wait until none of them listens."""
        assert self._process is not None
        self._process.kill_session()
        self.end()
        wait_until(lambda: not accepts(self.port), f"the end of {self.name}")

    def end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


@contextmanager
def pair_of_nginx(directory: Path) -> Iterator[tuple[Nginx, Nginx]]:
    with ExitStack() as stack:
        both = Nginx(directory, "one"), Nginx(directory, "two")
        for each in both:
            each.start()
            stack.callback(each.end)
        yield both


def configured(servers: list[str], **upstream: Any) -> dict[str, Any]:
    return {
        "upstreams": {"app": {"servers": servers, **upstream}},
        "routes": [{"path": "/**", "upstream": "app", "access": "public"}],
    }


def answered_by(node: Patgate, count: int = 12) -> set[bytes]:
    """The names of the servers that answer, over a connection to each worker."""
    found: set[bytes] = set()
    for connection in node.connection_to_each_worker().values():
        with connection:
            for _ in range(count):
                response = connection.request("GET", "/who")
                found.add(response.body if response.status == 200 else b"%d" % response.status)
    return found


def test_the_death_of_one_server_under_load_is_nobodys_failure(gateways: Pool, tmp_path: Path) -> None:
    """Requests of idempotent methods only; the one that is on a new connection when the server dies may be lost."""
    with ExitStack() as stack:
        one, two = stack.enter_context(pair_of_nginx(tmp_path))
        # A name that is resolved repeatedly; on many machines it has two addresses, one of which refuses connections.
        config = configured([one.url, f"http://localhost:{two.port}"], resolve_interval="500ms")
        node = stack.enter_context(gateways.lend(config))
        assert answered_by(node) == {b"one", b"two"}
        with ExitStack() as clients:
            loads = [clients.enter_context(Load(node.connect, "/load", {})) for _ in range(4)]
            deaths: list[tuple[float, float]] = []
            for _ in range(2):
                begins = time.monotonic()
                one.kill()
                deaths.append((begins, time.monotonic()))
                for load in loads:
                    load.wait_for_more(50)
                assert answered_by(node) == {b"two"}
                one.start()
                wait_until(lambda: answered_by(node) == {b"one", b"two"}, "both answer again")
        answers = [answer for load in loads for answer in load.answers]
        lost = [answer for answer in answers if answer.status != 200]
        # What is lost was under way when the server died.
        assert all(
            any(answer.began <= dead and begins <= answer.began + answer.seconds for begins, dead in deaths)
            for answer in lost
        )
        assert len(lost) <= len(deaths) * len(loads)
        assert len(answers) >= 400


def test_a_server_that_says_it_is_ill_gets_no_requests_while_it_does(gateways: Pool, tmp_path: Path) -> None:
    health = {"path": "/healthz", "interval": "200ms", "timeout": "5s", "rise": 2, "fall": 2, "expect": ["200..299"]}
    with ExitStack() as stack:
        one, two = stack.enter_context(pair_of_nginx(tmp_path))
        node = stack.enter_context(gateways.lend(configured([one.url, two.url], health=health)))
        load = stack.enter_context(Load(node.connect, "/load", {}))

        def up() -> list[float]:
            samples = scrape(node)
            labels = [(("server", each.url), ("upstream", "app")) for each in (one, two)]
            return [samples.get(("patgate_upstream_server_up", label), -1.0) for label in labels]

        wait_until(lambda: up() == [1, 1], "both servers up in the metrics")
        assert answered_by(node) == {b"one", b"two"}
        one.well.unlink()
        wait_until(lambda: answered_by(node) == {b"two"}, "no answers of the ill one")
        wait_until(lambda: up() == [0, 1], "one server down in the metrics")
        one.well.write_text("well")
        wait_until(lambda: up() == [1, 1], "both servers up again")
        assert answered_by(node) == {b"one", b"two"}
        assert load.statuses() == {200}
        for each in (one, two):
            each.well.unlink()
        wait_until(lambda: answered_by(node) == {b"503"}, "a refusal where every server is unhealthy")
        two.well.write_text("well")
        wait_until(lambda: answered_by(node) == {b"two"}, "answers of the one that recovered")

        changes = {one.url: ["unhealthy", "healthy again", "unhealthy"], two.url: ["unhealthy", "healthy again"]}

        def logged() -> dict[tuple[str, int], list[str]]:
            """The changes of each server, by the worker that noticed them."""
            found: dict[tuple[str, int], list[str]] = {}
            for each in node.records():
                if each["event"].startswith("upstream server"):
                    change = each["event"].removeprefix("upstream server is ")
                    found.setdefault((each["server"], each["worker"]), []).append(change)
            return found

        expected = {(server, worker): changes[server] for server in changes for worker in (0, 1)}
        # A line is written some time after the change.
        wait_until(lambda: sum(map(len, logged().values())) >= sum(map(len, expected.values())), "every change logged")
        assert logged() == expected
        checks = scrape(node)[
            "patgate_upstream_checks_total", (("outcome", "failed"), ("server", one.url), ("upstream", "app"))
        ]
        assert checks >= 4
