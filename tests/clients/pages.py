"""Reads a recipe of docs/recipes and runs it: its configuration, its commands and the output that it shows.

A page is divided by its headings. Below a heading, the ``console`` block has the commands that a user types, the
``text`` block after it has what the user sees (a line ``…`` stands for any lines), and a ``yaml`` or other block is a
file of the gateway or of the backend. In all of them ``127.0.0.1:8080`` is the gateway.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import yaml

from tests.support.gateway import ROOT, Patgate, Token, clean_environ
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, run
from tests.support.tap import Tap

PAGES = ROOT / "docs" / "recipes"
CLIENTS = ROOT / ".venv-clients"
BACKENDS = ROOT / ".venv-backends"

LONGEST = 240.0
"""Seconds that the commands of a user may take: far more than they need on an idle machine."""

EDITOR = "eve@example.org"
VIEWER = "vic@example.org"

_FENCE = re.compile(r"^```(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_GATEWAY = f"{LOOPBACK}:8080"
_OF_THE_MACHINE = ("PIP_", "GIT_", "NPM_", "AWS_", "JUPYTER_", "TF_", "TWINE_", "NODE_")
"""Settings of the machine that would change what a client does."""

_WITHOUT_A_TERMINAL = {
    "CHECKPOINT_DISABLE": "1",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
}


class Page:
    """One recipe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (PAGES / f"{name}.md").read_text("utf-8")

    def section(self, heading: str) -> str:
        """The text below a heading, to the next one."""
        found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", self.text, re.MULTILINE | re.DOTALL)
        assert found is not None, f"{self.name}.md has no heading {heading!r}"
        return found[1]

    def block(self, heading: str, language: str) -> str:
        """The only block of a language below a heading."""
        (text,) = [text for found, text in _FENCE.findall(self.section(heading)) if found == language]
        return str(text)

    def configuration(self, ports: Mapping[int, int]) -> dict[str, Any]:
        """The configuration of the gateway, with other ports than those of the page."""
        text = self.block("Configuration", "yaml")
        for shown, port in ports.items():
            text = text.replace(f"{LOOPBACK}:{shown}", f"{LOOPBACK}:{port}")
        config = yaml.safe_load(text)
        assert isinstance(config, dict)
        return config

    def commands(self, heading: str) -> str:
        """What the user types, as a script."""
        lines = self.block(heading, "console").splitlines()
        assert lines and all(line.startswith(("$ ", "  ")) for line in lines), f"{self.name}.md: {heading}"
        return "\n".join(line[2:] for line in lines)


def expression(prints: str) -> str:
    """The shown output as a regular expression; a line ``…`` matches any lines, ``…`` within a line any text."""
    lines = [
        r"(?:.*\n)*?" if line == "…" else ".*?".join(map(re.escape, line.split("…"))) + r"(?:\n|\Z)"
        for line in prints.splitlines()
    ]
    return "^" + "".join(lines)


def plain(output: str) -> str:
    """An output without colours, progress bars and padding."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r", "\n")
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """A running gateway with the configuration of a page, and a token of an editor and of a viewer."""

    node: Patgate
    page: Page
    editor: Token
    viewer: Token

    def types(
        self,
        heading: str,
        place: Path,
        token: Token | None = None,
        *,
        seconds: float = LONGEST,
    ) -> CompletedProcess[str]:
        """Run the commands below a heading in a directory, as a user whose home it is and whose ``$TOKEN`` this is.

        Both outputs are in ``stdout``, in the order in which they were written.
        """
        script = f"set -euo pipefail\nexec 2>&1\n{self.here(self.page.commands(heading))}\n"
        return run(["bash", "-c", script], cwd=place, environ=environment(place, token), seconds=seconds)

    def starts(self, heading: str, place: Path, token: Token) -> Process:
        """Run commands that do not end by themselves; ``with`` ends them."""
        script = f"set -euo pipefail\n{self.here(self.page.commands(heading))}\n"
        return Process(["bash", "-c", script], name="client", directory=place, environ=environment(place, token))

    def succeeds(self, heading: str, place: Path, token: Token | None = None, *, seconds: float = LONGEST) -> str:
        """Run commands that must succeed; return their output."""
        done = self.types(heading, place, token, seconds=seconds)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def refuses(self, heading: str, place: Path, token: Token | None = None) -> str:
        """Run commands that must fail; check that the user sees what the page shows; return the output."""
        done = self.types(heading, place, token)
        assert done.returncode != 0, done.stdout
        self.shows(heading, done.stdout)
        return done.stdout

    def shows(self, heading: str, output: str) -> None:
        """Check that the user saw what the page shows below a heading."""
        shown, seen = plain(self.here(self.page.block(heading, "text"))), plain(output)
        assert re.search(expression(shown), seen, re.MULTILINE), f"the page shows\n{shown}\nthe user saw\n{seen}"

    def here(self, text: str) -> str:
        """A text of the page with the port of this gateway."""
        return text.replace(_GATEWAY, f"{LOOPBACK}:{self.node.port}")


def environment(home: Path, token: Token | None = None) -> dict[str, str]:
    """The environment of a user or a backend: without the machine's settings, and with the recipes' programs."""
    environ = {
        name: value for name, value in clean_environ(None).items() if not name.upper().startswith(_OF_THE_MACHINE)
    }
    del environ["PYTHONPATH"]
    places = [home / "bin", CLIENTS / "bin", CLIENTS / "npm" / "node_modules" / ".bin", BACKENDS / "bin"]
    path = os.pathsep.join([*map(str, places), os.environ["PATH"], "/usr/sbin"])
    own = {"HOME": str(home), "PATH": path, "no_proxy": "*", "LC_ALL": "C.UTF-8"}
    return environ | own | _WITHOUT_A_TERMINAL | ({"TOKEN": token.value} if token else {})


@contextmanager
def front(
    gateways: Pool,
    page: Page,
    *,
    watched: bool = True,
    ports: Mapping[int, int] | None = None,
    directory: Path | None = None,
    **backends: int,
) -> Iterator[Front]:
    """A gateway with the configuration of a page in front of backends, by the name of their upstream.

    ``ports`` replaces ports of the page that are not a backend's. The files of ``set_headers`` are in ``directory``.
    The wire sentinel reads the requests that the gateway writes to the backends, unless ``watched`` is false.
    """
    config = page.configuration(ports or {})
    assert config["upstreams"].keys() == backends.keys()
    with ExitStack() as stack:
        for name, port in backends.items():
            tapped = stack.enter_context(Tap(port, name)).port if watched else port
            config["upstreams"][name]["servers"] = [f"http://{LOOPBACK}:{tapped}"]
            for value in config["upstreams"][name].get("set_headers", {}).values():
                assert directory is not None
                value["file"] = str(directory / value["file"])
        node = stack.enter_context(gateways.lend({"workers": 1} | config))
        node.add_user(EDITOR, "editor")
        node.add_user(VIEWER, "viewer")
        yield Front(node=node, page=page, editor=node.token(EDITOR), viewer=node.token(VIEWER))
