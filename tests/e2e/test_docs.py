"""Checks README.md and other documents: runs every command, and verifies named reasons, headers and files.

Fenced ``sh`` blocks are run: those of one document in order, in one shell and one empty directory, with free ports
instead of the documented ones. A ``text`` block directly after one is its expected output; ``…`` matches anything.
Commands that cannot be run here are fenced as ``console``, and each of them is listed in ``NOT_RUN``.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click
import pytest
import yaml

from proxy.cli.main import COMMANDS, patgate
from proxy.core.identity import PRESETS, STRIPPED, IdentityField
from proxy.core.reasons import TABLE, Challenge, Reason
from proxy.core.request.claims import CLAIMS, FAMILIES, ClaimKind, fold
from proxy.core.request.second_targets import UNJUDGED
from proxy.core.token import TokenFormat
from proxy.settings.model import Settings
from tests.support.gateway import ROOT, clean_environ
from tests.support.process import Process, free_port

FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
RECIPES = sorted(ROOT.glob("docs/recipes/*.md"))
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path for path in [*FRONT, *sorted(ROOT.glob("docs/*.md")), *RECIPES]}
LANGUAGES = {"sh", "console", "text", "yaml", "json", "toml", "python", "html", "hcl", "apache", "nginx", "sql"}

#: Commands that change their machine or are tested elsewhere, with the place that tests them.
NOT_RUN = {
    "make demo": "tests/e2e/test_demo.py",
    "sudo make bootstrap": "tests/unit/test_bootstrap.py",
    "make install": "this run",
    ".venv/bin/python -m pytest tests/unit/core": "this run",
    "make check": "tests/unit/test_house.py",
    "make test": "this run",
    "make test-unit": "",
    "python3 -m venv /opt/patgate": "",
    "/opt/patgate/bin/pip install --require-hashes -r requirements.lock": "tests/unit/test_house.py",
    "/opt/patgate/bin/pip install --no-deps --no-build-isolation .": "",
    "useradd --system --shell /usr/sbin/nologin patgate": "",
    "install -D -m 0644 patgate.yaml /etc/patgate/patgate.yaml": "",
    "install -m 0644 config/systemd/patgate.service /etc/systemd/system/": "tests/unit/test_examples.py",
    "install -D -m 0644 -t /etc/systemd/system/patgate.service.d config/systemd/before-253.conf": (
        "tests/unit/test_examples.py"
    ),
    "systemctl daemon-reload": "",
    "systemctl enable --now patgate": "",
    "systemctl restart patgate": "",
    "export PATGATE_CONFIG=/etc/patgate/patgate.yaml PATGATE_DATA_DIR=/var/lib/patgate": "",
    'patgate() { runuser -u patgate -- /opt/patgate/bin/patgate "$@"; }': "",
    "patgate user list": "tests/unit/cli/test_people.py",
    "apt-get install python3-venv": "",
    "apt-get install curl git make python3-venv": "",
    "make venv": "this run",
    "PATH=$PWD/.venv/bin:$PATH": "",
    "patgate user add vic@example.org --role viewer": "this run",
    "patgate token create --user vic@example.org --name first --expires 30d": "this run",
    "patgate doctor http://api.example.org:8080 --path /v1/things/1": "tests/e2e/test_doctor.py",
    "apt-get install nginx": "tests/e2e/ingress/conftest.py",
    "cp config/ingress/nginx/nginx.conf /etc/nginx/conf.d/patgate.conf": "tests/support/ingress.py",
    "cp config/ingress/nginx/nginx-claims.conf /etc/nginx/": "tests/support/ingress.py",
    "nginx -t && systemctl reload nginx": "tests/support/ingress.py",
    "cp config/ingress/caddy/Caddyfile /etc/caddy/Caddyfile": "tests/support/ingress.py",
    "systemctl reload caddy": "",
    "cp config/ingress/traefik/*.yaml /etc/traefik/": "tests/support/ingress.py",
    "systemctl restart traefik": "",
    "cp config/ingress/envoy/envoy.yaml /etc/envoy/envoy.yaml": "tests/support/ingress.py",
    "systemctl restart envoy": "",
    "apt-get install haproxy": "tests/e2e/ingress/conftest.py",
    "cp config/ingress/haproxy/* /etc/haproxy/": "tests/support/ingress.py",
    "haproxy -c -f /etc/haproxy/haproxy.cfg && systemctl reload haproxy": "tests/support/ingress.py",
    "docker build -t patgate .": "tests/unit/test_image.py",
    "docker run -d --name patgate --read-only -p 8080:8080"
    " -v ./patgate.yaml:/etc/patgate/patgate.yaml:ro -v patgate:/var/lib/patgate patgate": "tests/unit/test_image.py",
    "docker exec patgate patgate user list": "tests/unit/test_image.py",
    **dict.fromkeys(
        (
            "createuser --pwprompt patgate",
            "createdb --owner=patgate --encoding=UTF8 --template=template0 patgate",
            "systemctl stop patgate",
            "PGPASSWORD=… patgate store copy --to postgresql://patgate@db.internal/patgate --dry-run",
            "PGPASSWORD=… patgate store copy --to postgresql://patgate@db.internal/patgate",
            "mkdir -m 0700 /var/backups/patgate && mv /var/lib/patgate/patgate.db* /var/backups/patgate/",
            "systemctl start patgate",
            "patgate audit verify",
            "pg_dump --format=custom --file=patgate.dump --dbname=postgresql://patgate@db.internal/patgate",
            "pg_restore --clean --if-exists --no-owner --single-transaction"
            " --dbname=postgresql://patgate@db.internal/patgate patgate.dump",
            "PATGATE_LISTEN__PROXY__BIND=127.0.0.1:0 patgate serve",
            "patgate nodes accept --yes",
            "patgate token list --status active",
            "patgate token revoke ID",
        ),
        "tests/e2e/test_moving.py",
    ),
}

BACKENDS = str(ROOT / ".venv-backends" / "bin")
"""Traefik and Envoy are there."""

_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PORTS = ("8080", "8081", "8082", "8084", "8090", "3000")
_PORT = re.compile(rf"(?<![\d.])({'|'.join(PORTS)})(?!\d)")
_MARK = "=== block at line "
_SECONDS = 480.0
"""Far more than a document takes: an idle machine needs about twenty seconds for the longest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One fenced block: its language, first line and text, and its documented output."""

    language: str
    line: int
    text: str
    prints: str | None = None


def blocks(document: str) -> list[Block]:
    text = DOCUMENTS[document].read_text("utf-8")
    found = list(_FENCE.finditer(text))
    answers = {
        first.start(): second[2]
        for first, second in pairwise(found)
        if first[1] == "sh" and second[1] == "text" and not text[first.end() : second.start()].strip()
    }
    return [
        Block(
            language=fence[1],
            line=text.count("\n", 0, fence.start()) + 2,
            text=fence[2],
            prints=answers.get(fence.start()),
        )
        for fence in found
    ]


def runnable(document: str) -> list[Block]:
    return [block for block in blocks(document) if block.language == "sh"]


def with_ports(text: str, ports: dict[str, str]) -> str:
    """The text with free ports instead of the documented ones."""
    return _PORT.sub(lambda port: ports[port[0]], text)


def script(found: list[Block], ports: dict[str, str]) -> str:
    """The blocks as one script that stops at the first failure and, like a reader, waits for the servers it started."""
    lines = ["set -euo pipefail"]
    for block in found:
        text = with_ports(block.text, ports)
        lines.append(f"printf '\\n%s\\n' '{_MARK}{block.line}'")
        # Lines are logged in batches, so wait for them; a human reader is slower anyway.
        for pattern, log in re.findall(r"^grep (\w+) (\S+\.log)$", text, re.MULTILINE):
            lines.append(f"until grep -q {pattern} {log}; do sleep 0.05; done")
        lines.append(text)
        if re.search(r"patgate serve[^|\n]*&$", text, re.MULTILINE):
            lines.append(
                f"until curl -fo /dev/null http://127.0.0.1:{ports['8081']}/readyz 2> /dev/null; do sleep 0.05; done"
            )
        if re.search(rf"{ports['3000']}.*&$", text, re.MULTILINE):
            lines.append(f"until (: < /dev/tcp/127.0.0.1/{ports['3000']}) 2> /dev/null; do sleep 0.05; done")
    return "\n".join([*lines, f"printf '\\n%s\\n' '{_MARK}0'", ""])


def environment(directory: Path, ports: dict[str, str]) -> dict[str, str]:
    """An isolated environment: ``patgate`` runs this checkout, and the user's configuration files have no effect."""
    tools = directory / "tools"
    tools.mkdir()
    command = tools / "patgate"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m proxy "$@"\n')
    command.chmod(0o755)
    (tools / ".curlrc").write_text('silent\nshow-error\nnoproxy = "*"\n')
    environ = {name: value for name, value in clean_environ(None).items() if not name.startswith(("PIP_", "GIT_"))}
    return environ | {
        "HOME": str(tools),
        "PATH": os.pathsep.join(
            [
                str(tools),
                str(Path(sys.executable).parent),
                os.environ["PATH"],
                "/usr/sbin",
                str(ROOT / ".venv-backends" / "bin"),
            ]
        ),
        "PATGATE_LISTEN__PROXY__BIND": f"127.0.0.1:{ports['8080']}",
        "PATGATE_LISTEN__CONTROL__BIND": f"127.0.0.1:{ports['8081']}",
        "PATGATE_WORKERS": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "no_proxy": "*",
    }


def addresses(directory: Path, ports: dict[str, str]) -> None:
    """Give the ingress files the free ports, and the socket inside HAProxy a name that no other run has."""
    for path in directory.glob("*/*"):
        path.write_text(with_ports(path.read_text(), ports).replace("abns@patgate", f"abns@patgate-{ports['8090']}"))


def printed(output: str) -> dict[int, str]:
    """The output of each block, by the line of the block."""
    parts = re.split(rf"^{_MARK}(\d+)$\n?", output.replace("\r\n", "\n"), flags=re.MULTILINE)
    return {int(line): text for line, text in zip(parts[1::2], parts[2::2], strict=True)}


def expression(prints: str) -> str:
    """The documented output as a regular expression; a line ``…`` matches any number of lines."""
    lines = [
        r"(?:.*\n)*?" if line == "…" else ".*?".join(map(re.escape, line.split("…"))) + r"[ \t]*(?:\n|\Z)"
        for line in prints.splitlines()
    ]
    return "^" + "".join(lines)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if runnable(name)])
def test_every_command_of_a_document_runs_and_prints_what_the_document_says(document: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    ports = {port: str(free_port()) for port in PORTS}
    # What is copied from a checkout; some documents say that they are read in one.
    shutil.copytree(ROOT / "config", place / "config")
    addresses(place / "config" / "ingress", ports)
    (tmp_path / "script.sh").write_text(script(runnable(document), ports))
    with Process(
        ["bash", str(tmp_path / "script.sh")],
        name=document.replace("/", "-"),
        directory=tmp_path,
        environ=environment(tmp_path, ports),
        cwd=place,
    ) as reader:
        code = reader.wait(_SECONDS)
        said = printed(reader.output)
        assert code == 0, f"{document}: the block at line {max(said)} failed\n{reader.output}"
    for block in runnable(document):
        if block.prints is not None:
            wanted = expression(with_ports(block.prints, ports))
            assert re.search(wanted, said[block.line], re.MULTILINE), f"{document}:{block.line}\n{said[block.line]}"


def test_what_is_not_run_is_listed_and_nothing_else_is() -> None:
    commands = [
        line[2:].partition("  #")[0].strip()
        for document, path in DOCUMENTS.items()
        for block in blocks(document)
        if block.language == "console" and path not in RECIPES  # tests/clients runs those
        for line in block.text.splitlines()
        if line.startswith(("$ ", "# "))
    ]
    assert set(commands) == set(NOT_RUN)
    assert all((ROOT / place).is_file() for place in NOT_RUN.values() if place.startswith("tests/"))


def test_patgate_leaves_the_port_of_each_ingress_file_free() -> None:
    """A reload of nginx succeeds although it cannot open its port; then patgate answers in its place."""
    start = next(block.text for block in runnable("docs/ingress.md"))
    named = [("docs/ingress.md", start.partition("<<'END'\n")[2].partition("END\n")[0])]
    for path in sorted(ROOT.glob("config/ingress/*/*")):
        named += [
            (path.parent.name, text) for text in re.findall(r"^#   (listen: .*)$", path.read_text(), re.MULTILINE)
        ]
    assert {name for name, _ in named} == {"docs/ingress.md", "nginx", "caddy", "traefik", "envoy", "haproxy"}
    for name, text in named:
        listen = Settings.model_validate(yaml.safe_load(text)).listen
        binds = [each.bind for each in (listen.proxy, listen.control, listen.forward_auth, listen.ext_authz) if each]
        assert 8080 not in {bind.port for bind in binds}, name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_says_what_it_is_and_yaml_can_be_read(document: str) -> None:
    for block in blocks(document):
        assert block.language in LANGUAGES, f"{document}:{block.line}"
        if block.language == "yaml":
            assert yaml.safe_load(block.text), f"{document}:{block.line}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    path = DOCUMENTS[document]
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", there.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_that_is_named_exists(document: str) -> None:
    for words in re.findall(r"`patgate ((?:[a-z-]+ ?)+)", DOCUMENTS[document].read_text("utf-8")):
        noun, *rest = (word for word in words.split() if not word.startswith("-"))
        assert noun in COMMANDS, words
        assert isinstance(patgate, click.Group)
        command = patgate.get_command(click.Context(patgate), noun)
        if isinstance(command, click.Group) and rest:
            assert rest[0] in command.list_commands(click.Context(command)), words


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_of_the_tree_that_is_named_exists(document: str) -> None:
    text = DOCUMENTS[document].read_text("utf-8")
    for name in re.findall(r"`((?:proxy|config|tests|bench|docs)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:core|gateway|settings|control|cli|observe)/[\w./-]*)", text):
        assert (ROOT / "proxy" / name).exists() or (ROOT / name).exists(), name


def test_every_document_is_reached_from_the_index() -> None:
    index = DOCUMENTS["docs/index.md"].read_text("utf-8")
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert linked == {path.name for path in ROOT.glob("docs/*.md")} - {"index.md"}
    assert "](recipes/index.md)" in index
    recipes = set(re.findall(r"\]\(([\w-]+\.md)\)", DOCUMENTS["docs/recipes/index.md"].read_text("utf-8")))
    assert recipes == {path.name for path in RECIPES} - {"index.md"}


def test_every_reason_is_documented_as_the_table_of_reasons_has_it() -> None:
    text = DOCUMENTS["docs/reasons.md"].read_text("utf-8")
    documented: dict[str, tuple[int, str, str, Challenge]] = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        error = re.search(r'`error="(\w+)"`', section.splitlines()[0])
        for reason, status, public, title, advice in re.findall(
            r"^\| `(\w+)` \| (\d{3}) \| `(\w+)`: ([^|]+?) \| ([^|]+?) \|$", section, re.MULTILINE
        ):
            assert reason not in documented
            assert advice.endswith("."), reason
            challenge = Challenge(error[1]) if error else Challenge.CREDENTIAL if status == "401" else Challenge.NONE
            documented[reason] = (int(status), public, title, challenge)
    rows = {reason: row for reason, row in TABLE.items() if reason is not Reason.ALLOWED}
    assert documented == {
        reason.value: (row.status, row.public, row.title, row.challenge) for reason, row in rows.items()
    }
    assert "`allowed` (200)" in text
    assert TABLE[Reason.ALLOWED].status == 200


def test_the_headers_of_every_preset_are_documented() -> None:
    text = DOCUMENTS["docs/backends.md"].read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    (head,) = [row for row in rows if row[0] == "" and "`patgate`" in row]
    table = rows[rows.index(head) + 2 : rows.index(head) + 2 + len(IdentityField)]
    for column, cell in enumerate(head[1:], 1):
        documented = [sorted(re.findall(r"`([\w-]+)`", row[column])) for row in table]
        headers = PRESETS[cell.strip("`")].headers
        assert documented == [sorted(name for field, name in headers if field is wanted) for wanted in IdentityField]


def test_every_header_that_is_dropped_is_documented() -> None:
    text = DOCUMENTS["docs/backends.md"].read_text("utf-8")
    section = text.partition("## What you may rely on")[2].partition("A star stands")[0]
    rows = [line.split("|")[2] for line in section.splitlines() if line.startswith("| a")]
    assert [(re.findall(r"`([\w-]+)`", row), re.findall(r"`([\w$-]+)\*`", row)) for row in rows] == [
        (list(CLAIMS[kind]), list(FAMILIES[kind])) for kind in ClaimKind
    ]
    of_presets = {fold(name.encode()) for preset in PRESETS.values() for _, name in preset.headers}
    whole = {fold(name.encode()) for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert whole | of_presets | {b"x-request-id"} == STRIPPED


def test_every_header_that_names_a_second_resource_is_documented() -> None:
    text = DOCUMENTS["docs/backends.md"].read_text("utf-8")
    section = text.partition("### A second resource in a header")[2].partition("A second target that")[0]
    row = next(line for line in section.splitlines() if "Refused with" in line)
    assert re.findall(r"`([\w-]+)`", row.split("|")[1]) == list(UNJUDGED)


def test_the_token_that_is_shown_is_one() -> None:
    text = DOCUMENTS["docs/tokens.md"].read_text("utf-8")
    tokens = re.findall(r"^acme_pat_[0-9A-Za-z]{12}_[0-9A-Za-z]+$", text, re.MULTILINE)
    assert len(tokens) == 1
    parsed = TokenFormat("acme").parse(tokens[0])
    assert parsed is not None
    assert f"`{parsed.prefix}` is the **public prefix**" in text
