"""F9: a page in Chromium with an API of another origin."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.pages import CLIENTS, Front, Page, environment, front
from tests.support.backends import program
from tests.support.gateway import Token
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, run, wait_until

PAGE = Page("browser")


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """The running gateway and API, and the port of the page."""

    gate: Front
    port: int

    def use(self, place: Path, *steps: tuple[str, Token | None, str]) -> list[str]:
        """What the page shows after each step: the host that the page is loaded from, a token and a button."""
        listed = [
            (f"http://{host}:{self.port}/", token.value if token else "", button) for host, token, button in steps
        ]
        environ = environment(place) | {"STEPS": json.dumps(listed), "CHROMIUM": program("chromium")}
        argv = [str(CLIENTS / "bin" / "python"), str(Path(__file__).with_name("browser.py"))]
        done = run(argv, cwd=place, environ=environ, seconds=120)
        assert done.returncode == 0, done.stdout + done.stderr
        shown: list[str] = json.loads(done.stdout)
        return shown


@pytest.fixture(scope="module")
def site(gateways: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    api, pages, directory = free_port(), free_port(), tmp_path_factory.mktemp("site")
    (directory / "api.py").write_text(PAGE.block("The API", "python"))
    (directory / "pages").mkdir()
    servers = {
        api: ["uvicorn", "api:app", "--host", LOOPBACK, "--port", str(api)],
        pages: [sys.executable, "-m", "http.server", "--bind", LOOPBACK, "--directory", "pages", str(pages)],
    }
    with ExitStack() as stack:
        for port, argv in servers.items():
            process = Process(argv, name=f"server-{port}", directory=directory, environ=environment(directory))
            stack.enter_context(process)
        for port in servers:
            wait_until(lambda port=port: accepts(port), "a server listening")  # type: ignore[misc]
        with front(gateways, PAGE, ports={3001: pages}, app=api) as gate:
            (directory / "pages" / "index.html").write_text(gate.here(PAGE.block("The page", "html")))
            yield Site(gate=gate, port=pages)


def test_a_page_of_another_origin_uses_an_api_that_knows_nothing_of_cors(site: Site, tmp_path: Path) -> None:
    gate = site.gate
    added, followed = site.use(tmp_path, (LOOPBACK, gate.editor, "add"), (LOOPBACK, gate.editor, "follow"))
    gate.shows("Add as an editor", added)
    gate.shows("Follow as an editor", followed)


def test_a_page_can_read_why_it_was_refused_unless_its_origin_may_not_call(site: Site, tmp_path: Path) -> None:
    gate = site.gate
    denied, missing, foreign, closed = site.use(
        tmp_path,
        (LOOPBACK, gate.viewer, "add"),
        (LOOPBACK, None, "list"),
        ("localhost", gate.editor, "list"),
        (LOOPBACK, gate.viewer, "follow"),
    )
    gate.shows("Add as a viewer", denied)
    gate.shows("List without a token", missing)
    gate.shows("List from a page of another origin", foreign)
    gate.shows("Follow as a viewer", closed)
