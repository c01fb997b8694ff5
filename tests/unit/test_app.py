"""What each process of a gateway is made of, and what it is not."""

import os
import subprocess
import sys
from pathlib import Path

from proxy.channel import pair

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


def test_a_gateway_worker_has_no_database_no_slow_hash_and_no_control_plane_in_its_memory() -> None:
    script = "import sys, proxy.app, proxy.gateway.worker; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    loaded = done.stdout.split()
    assert "proxy.gateway.worker" in loaded
    assert [name for name in loaded if name.startswith(FORBIDDEN)] == []


def test_a_start_that_fails_says_why_over_the_ready_pipe(tmp_path: Path) -> None:
    ready_in, ready_out = os.pipe()
    lifeline_in, lifeline_out = os.pipe()
    ours, theirs = pair()
    channel_fd = theirs.fileno()
    nowhere = str(tmp_path / "nowhere" / "data")
    script = (
        "import sys\n"
        "from proxy.settings.model import Settings\n"
        "from proxy.supervisor.processes import in_memory\n"
        "from proxy import app\n"
        f"settings = Settings.model_validate({{'data_dir': {nowhere!r}}})\n"
        "boot = str(in_memory(settings.to_boot_json().encode()))\n"
        f"pipes = ['--lifeline-fd', '{lifeline_in}', '--ready-fd', '{ready_out}', '--channel-fd', '{channel_fd}']\n"
        "sys.exit(app.main(['authority', '--boot-fd', boot, *pipes]))\n"
    )
    (tmp_path / "nowhere").write_text("a file, not a directory")
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
        pass_fds=(ready_out, lifeline_in, channel_fd),
    )
    os.close(ready_out)
    with open(ready_in, "rb") as ready:
        said = ready.read().decode()
    for fd in (lifeline_in, lifeline_out):
        os.close(fd)
    ours.close()
    theirs.close()
    assert done.returncode == 1, done.stderr
    assert said.startswith("error: ")
    assert said.count("\n") == 1
