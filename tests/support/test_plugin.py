"""Each kind of finding ends the run from any worker: planted once each, in a separate run with two workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BEGINNING = """
import time
from pathlib import Path
import pytest
from tests.support import leaks, sentinel

HERE = Path(__file__).parent

@pytest.mark.parametrize("number", range(4))
def test_other(number):
    pass
"""
TOKEN = f"acme_pat_{'p' * 12}_{'s' * 38}"


def run(directory: Path, planted: str) -> tuple[int, str]:
    """The exit code and output of a run of the planted test, beside tests that pass."""
    (directory / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    (directory / "conftest.py").write_text('pytest_plugins = ["tests.support.plugin"]\n')
    (directory / "test_other.py").write_text(BEGINNING)
    (directory / "test_planted.py").write_text(BEGINNING.replace("other", "one_more") + planted)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-n", "2", "-p", "no:cacheprovider"]
    argv += ["--rootdir", str(directory)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # Loading plugins that its tests do not use would take most of each run's time.
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run([*argv, str(directory)], cwd=directory, env=environ, capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ('''
def test_planted():
    sentinel.Watch("planted").sent(b"TRACE / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
''', "wire sentinel, planted"),
        ('''
def test_planted():
    leaks.SENT.append("a secret was sent")
''', "a secret was sent"),
    ],
    ids=["a violation", "a secret in a request"],
)  # fmt: skip
def test_what_a_gateway_must_not_send_fails_its_test_and_ends_the_run(tmp_path: Path, planted: str, said: str) -> None:
    code, output = run(tmp_path, planted)
    assert code == pytest.ExitCode.INTERRUPTED
    assert said in output
    assert "FAILED test_planted.py::test_planted" in output


def test_a_connection_that_a_failed_test_leaves_open_fails_no_other(tmp_path: Path) -> None:
    _, output = run(
        tmp_path,
        """
import gc
import socket
from tests.support.rawhttp import Connection

LISTENER = socket.create_server(("127.0.0.1", 0))

def test_planted():
    connection = Connection(LISTENER.getsockname()[1])
    connection.itself = connection  # only the garbage collector frees it
    assert False

@pytest.mark.filterwarnings("error")
def test_next():
    gc.collect()
""",
    )
    assert output.splitlines()[-1].startswith("1 failed, 9 passed")


def test_a_secret_in_a_file_is_found_at_the_end_and_a_test_that_is_alone_has_no_company(tmp_path: Path) -> None:
    code, output = run(
        tmp_path,
        f'''
@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("kind", [pytest.param("alone", marks=pytest.mark.alone), "shared"])
def test_turns(kind, number):
    began = time.monotonic()
    time.sleep(0.01)
    with (HERE / "turns").open("a") as turns:
        turns.write(f"{{kind}} {{began}} {{time.monotonic()}}\\n")

def test_planted():
    leaks.SECRETS.add("{TOKEN}")
    leaks.DIRECTORIES.add(HERE / "planted")
    (HERE / "planted").mkdir()
    (HERE / "planted" / "row.db").write_bytes(b"..{TOKEN}..")
''',
    )
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 error" in output.splitlines()[-1]
    assert "row.db" in output
    turns = [line.split() for line in (tmp_path / "turns").read_text().splitlines()]
    assert len(turns) == 40
    for kind, began, ended in turns:
        if kind == "alone":
            overlapping = [one for one in turns if float(one[1]) < float(ended) and float(one[2]) > float(began)]
            assert overlapping == [[kind, began, ended]]
