"""F9: a page in Chromium with an API of another origin."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.pages import CLIENTS, LONGEST, Front, Page, environment, front
from tests.support.backends import program
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, run, wait_until

PAGE = Page("browser")


@pytest.fixture(scope="module")
def site(gateways: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, int]]:
    """The gateway in front of the API, and the port of the page."""
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
            yield gate, pages


@pytest.fixture(scope="module")
def shown(site: tuple[Front, int], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the page shows in each section, all in one browser."""
    gate, port = site
    steps = {
        "Add as an editor": (LOOPBACK, gate.editor.value, "add"),
        "Follow as an editor": (LOOPBACK, gate.editor.value, "follow"),
        "Add as a viewer": (LOOPBACK, gate.viewer.value, "add"),
        "Follow as a viewer": (LOOPBACK, gate.viewer.value, "follow"),
        "List without a token": (LOOPBACK, "", "list"),
        "List from a page of another origin": ("localhost", gate.editor.value, "list"),
    }
    listed = [(f"http://{host}:{port}/", token, button) for host, token, button in steps.values()]
    home = tmp_path_factory.mktemp("browser")
    environ = environment(home) | {"STEPS": json.dumps(listed), "CHROMIUM": program("chromium")}
    argv = [str(CLIENTS / "bin" / "python"), str(Path(__file__).with_name("browser.py"))]
    done = run(argv, cwd=home, environ=environ, seconds=LONGEST)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(zip(steps, json.loads(done.stdout), strict=True))


def test_a_page_of_another_origin_uses_an_api_that_knows_nothing_of_cors(
    site: tuple[Front, int], shown: dict[str, str]
) -> None:
    gate, _ = site
    gate.shows("Add as an editor", shown["Add as an editor"])
    gate.shows("Follow as an editor", shown["Follow as an editor"])


def test_a_page_can_read_why_it_was_refused(site: tuple[Front, int], shown: dict[str, str]) -> None:
    gate, _ = site
    gate.shows("Add as a viewer", shown["Add as a viewer"])
    gate.shows("Follow as a viewer", shown["Follow as a viewer"])
    gate.shows("List without a token", shown["List without a token"])


def test_a_page_whose_origin_is_not_listed_reads_nothing(site: tuple[Front, int], shown: dict[str, str]) -> None:
    gate, _ = site
    gate.shows("List from a page of another origin", shown["List from a page of another origin"])
