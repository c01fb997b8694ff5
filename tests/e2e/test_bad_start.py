"""Failed starts: each mistake of an operator is reported in one clear sentence."""

from __future__ import annotations

import re
import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from tests.support.command import command as here
from tests.support.gateway import ROOT, Patgate, clean_environ, complete, patgate
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until
from tests.support.recorder import Recorder

#: Ten mistakes; ``# 1`` to ``# 10`` mark the lines that the messages must name.
TEN_MISTAKES = """\
brand: Not-A-Brand  # 1
data_dir: {data}
workers: none  # 2
listen:
  proxy: {{ bind: "127.0.0.1:{port}" }}
  control: {{ bind: "127.0.0.1" }}  # 3
  forward_auth: {{ bind: "127.0.0.1:8082", trusted: ["0.0.0.0/0"] }}  # 4
credentials: [bearer, cookie]  # 5
upstreams:
  app:
    servers: ["ftp://127.0.0.1:3000"]  # 6
    connect_timeout: soon  # 7
roles:
  admin: ["*:*"]
  editor: ["things"]  # 8
routes:
  - {{ path: "/v1/{{entity}}", upstream: app }}
  - {{ path: "/v2/{{entity}}", upstream: other }}  # 9
colour: blue  # 10
"""

ROUTES = [
    {"path": "/v1/{entity}/{id}", "upstream": "app"},
    {"path": "/public/**", "upstream": "app", "access": "public"},
]


def plain(servers: list[str]) -> dict[str, object]:
    return {"upstreams": {"app": {"servers": servers}}, "roles": {"admin": ["*:*"]}, "routes": ROUTES}


def said(done: CompletedProcess[str]) -> str:
    """The one sentence that a refused start prints; log records, which are for machines, are ignored."""
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("{")]
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, lines
    return lines[0]


def serve(config: Path, environ: dict[str, str] | None = None) -> CompletedProcess[str]:
    return patgate("serve", "--config", str(config), environ=clean_environ(environ))


@pytest.mark.parametrize("command", ["check", "serve"])
def test_ten_mistakes_are_ten_messages_with_their_lines_and_nothing_starts(command: str, tmp_path: Path) -> None:
    port = free_port()
    text = TEN_MISTAKES.format(data=tmp_path / "data", port=port)
    file = tmp_path / "patgate.yaml"
    file.write_text(text)
    marked = {number for number, line in enumerate(text.splitlines(), 1) if re.search(r"# \d+$", line)}
    done = patgate(command, "--config", str(file), environ=clean_environ(None))
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert "Traceback" not in told
    named = {int(number) for number in re.findall(r"(?:line |:)(\d+)\b", told)}
    assert marked <= named, f"lines {sorted(marked - named)} are not named in:\n{told}"
    assert not (tmp_path / "data").exists()
    assert not accepts(port)


def test_check_json_lists_every_problem_with_path_and_line(tmp_path: Path) -> None:
    file = tmp_path / "patgate.yaml"
    file.write_text(TEN_MISTAKES.format(data=tmp_path / "data", port=free_port()))
    done = patgate("check", "--config", str(file), "--json", environ=clean_environ(None))
    assert done.returncode == 1
    document = yaml.safe_load(done.stdout)  # JSON is YAML; this checks the structure, not the parser
    problems = document["problems"] if isinstance(document, dict) else document
    assert len(problems) == 10, problems
    assert all(problem["line"] and problem["path"] is not None and problem["message"] for problem in problems)


def test_a_data_directory_in_use_is_said_and_the_first_node_stays(
    gateways: Pool, tmp_path: Path, recorder: Recorder
) -> None:
    with gateways.lend(plain([recorder.url])) as first:
        second = complete(plain([recorder.url]), tmp_path)
        second["data_dir"] = str(first.data)
        file = tmp_path / "second.yaml"
        file.write_text(yaml.safe_dump(second))
        sentence = said(serve(file))
        assert str(first.data) in sentence
        assert "in use" in sentence
        assert first.is_ready()


@pytest.mark.parametrize("listener", ["proxy", "control", "forward_auth"])
def test_a_taken_port_is_said(listener: str, tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        config = plain([f"http://{LOOPBACK}:{free_port()}"])
        config["listen"] = {"forward_auth": {"trusted": ["127.0.0.1/32"]}}
        whole = complete(config, tmp_path)
        whole["listen"][listener]["bind"] = f"{LOOPBACK}:{port}"
        file = tmp_path / "patgate.yaml"
        file.write_text(yaml.safe_dump(whole))
        assert f"{LOOPBACK}:{port}" in said(serve(file))


def test_a_store_of_a_newer_schema_is_said_and_left_alone(tmp_path: Path, recorder: Recorder) -> None:
    node = Patgate(tmp_path, plain([recorder.url]))
    node.cli("org", "add", "lab")
    config, data = node.config_file, node.data
    (database,) = [file for file in data.iterdir() if file.is_file() and file.read_bytes()[:15] == b"SQLite format 3"]
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    before = database.read_bytes()
    sentence = said(serve(config))
    assert "newer" in sentence
    assert database.read_bytes() == before


def test_a_wrong_key_is_said_and_not_repeated(tmp_path: Path, recorder: Recorder) -> None:
    right, wrong = "r1ght" * 8, "wr0ng" * 8
    node = Patgate(tmp_path, plain([recorder.url]), environ={"PATGATE_SECRET_KEY": right})
    node.cli("org", "add", "lab")
    config = node.config_file
    sentence = said(serve(config, {"PATGATE_SECRET_KEY": wrong}))
    assert "key" in sentence
    assert right not in sentence and wrong not in sentence


@pytest.mark.parametrize("command", [("serve",), ("user", "list"), ("user", "add", "a@example.org", "--role", "admin")])
def test_a_store_without_its_key_is_said_and_gets_no_new_one(tmp_path: Path, command: tuple[str, ...]) -> None:
    file = tmp_path / "patgate.yaml"
    config = complete(plain(["http://127.0.0.1:1"]), tmp_path)
    file.write_text(yaml.safe_dump(config))
    add = ("org", "add", "lab", "--config", str(file))
    assert here(*add, environ=clean_environ(None)).returncode == 0
    key = Path(config["data_dir"]) / "secret.key"
    kept = key.read_bytes()
    key.unlink()
    sentence = said(patgate(*command, "--config", str(file), environ=clean_environ(None)))
    assert str(key) in sentence and "missing" in sentence and "put the file back" in sentence
    assert not key.exists()
    key.write_bytes(kept)
    key.chmod(0o600)
    assert here("org", "show", "lab", "--config", str(file), environ=clean_environ(None)).returncode == 0


def test_a_short_key_is_said_and_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "patgate.yaml"
    file.write_text(yaml.safe_dump(complete(plain(["http://127.0.0.1:1"]), tmp_path)))
    done = serve(file, {"PATGATE_SECRET_KEY": "t00short"})
    assert done.returncode == 1
    assert "t00short" not in done.stdout + done.stderr
    assert "32" in done.stderr


def test_a_missing_configuration_file_is_said(tmp_path: Path) -> None:
    assert "absent.yaml" in said(serve(tmp_path / "absent.yaml"))


def test_a_dead_backend_is_502_and_the_gateway_stays_up(gateways: Pool, tmp_path: Path) -> None:
    port = free_port()
    with gateways.lend(plain([f"http://{LOOPBACK}:{port}"])) as node:
        pids = node.all_workers()
        with node.connect() as connection:
            for _ in range(5):
                response = connection.request("GET", "/public/x")
                assert response.status == 502
                assert response.get("Content-Type") == "application/problem+json"
                assert response.json()["reason"] == "upstream_refused"
                assert response.keeps_alive
        argv = [sys.executable, "-m", "http.server", str(port), "--bind", LOOPBACK, "--directory", str(tmp_path)]
        with Process(argv, name="backend", directory=tmp_path, cwd=ROOT) as backend:
            wait_until(lambda: accepts(port), "the backend listening", process=backend)
            with node.connect() as connection:
                assert connection.request("GET", "/public/x").status == 404, "the backend's own answer"
        assert node.all_workers() == pids
        assert node.is_ready()
