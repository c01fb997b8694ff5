"""Child processes: each role imports only its own modules, and a start reports how it ended."""

import os
import subprocess
import sys
from pathlib import Path

from proxy.supervisor_channel import pair
from tests.support.process import HANGS_SECONDS

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = (
    "proxy.store",
    "proxy.services",
    "proxy.authority",
    "proxy.control",
    "proxy.cli",
    "sqlalchemy",
    "aiosqlite",
    "sqlite3",
    "alembic",
    "argon2",
    "aiohttp",
    "prometheus_client",
    "click",
    "rich",
)
LARGE = ("proxy.store.store", "sqlalchemy", "aiosqlite", "alembic", "argon2", "aiohttp", "prometheus_client", "rich")


def test_a_gateway_worker_imports_no_database_no_slow_hash_and_no_control_plane() -> None:
    script = "import sys, proxy.app, proxy.gateway.process.worker; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    loaded = done.stdout.split()
    assert "proxy.gateway.process.worker" in loaded
    assert [name for name in loaded if name.startswith(FORBIDDEN)] == []


def test_a_command_loads_neither_the_store_nor_a_web_framework_unless_it_serves() -> None:
    """Importing them takes longer than the rest of a command that queries a running gateway."""
    serving = {"quickstart", "quickstart_steps", "whoami"}
    paths = [path for path in (ROOT / "proxy" / "cli").rglob("*.py") if path.stem not in {*serving, "__init__"}]
    script = "".join(f"import {'.'.join(path.relative_to(ROOT).with_suffix('').parts)}\n" for path in sorted(paths))
    script += "import sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    loaded = done.stdout.split()
    assert {"proxy.cli.listing", "proxy.cli.commands.token"} <= set(loaded)
    assert [name for name in loaded if name.startswith(LARGE)] == []


def run_child(role: str, data_dir: Path, before: str = "", *, heard: bool, alive: bool) -> tuple[int, str, str]:
    """The exit status of a child, its output on the ready pipe, and its log.

    ``before`` is code that its process runs first. If ``heard`` is false, the ready pipe has no reader; if ``alive`` is
    false, the supervisor has ended.
    """
    ready_in, ready_out = os.pipe()
    lifeline_in, lifeline_out = os.pipe()
    ours, theirs = pair()
    channel_fd = theirs.fileno()
    script = (
        "import sys\n"
        "from proxy.settings.model import Settings\n"
        "from proxy.supervisor.child import in_memory\n"
        "from proxy import app\n"
        f"{before}\n"
        f"settings = Settings.model_validate({{'data_dir': {str(data_dir)!r}}})\n"
        "boot = str(in_memory(settings.to_boot_json().encode()))\n"
        f"pipes = ['--lifeline-fd', '{lifeline_in}', '--ready-fd', '{ready_out}', '--channel-fd', '{channel_fd}']\n"
        f"sys.exit(app.main(['{role}', '--boot-fd', boot, *pipes]))\n"
    )
    ready = os.fdopen(ready_in, "rb")
    if not heard:
        ready.close()
    if not alive:
        os.close(lifeline_out)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=HANGS_SECONDS,
        pass_fds=(ready_out, lifeline_in, channel_fd),
    )
    os.close(ready_out)
    report = ready.read().decode() if heard else ""
    ready.close()
    for fd in (lifeline_in, lifeline_out) if alive else (lifeline_in,):
        os.close(fd)
    ours.close()
    theirs.close()
    return done.returncode, report, done.stderr


def test_a_failed_start_reports_why_over_the_ready_pipe(tmp_path: Path) -> None:
    (tmp_path / "nowhere").write_text("a file, not a directory")
    status, report, log = run_child("authority", tmp_path / "nowhere" / "data", heard=True, alive=True)
    assert status == 1, log
    assert report.startswith("error: ")
    assert report.count("\n") == 1


def test_a_worker_that_becomes_ready_after_its_supervisor_stopped_ends_without_a_defect(tmp_path: Path) -> None:
    """A supervisor that has to stop abandons a child that it has just started."""
    page = (
        "import pathlib\n"
        "from proxy.authority.grants.page_writer import open_page\n"
        f"open_page(pathlib.Path({str(tmp_path)!r}), store_epoch=1)\n"
    )
    status, _, log = run_child("gateway", tmp_path, page, heard=False, alive=False)
    assert (status, "defect" in log) == (0, False), log
