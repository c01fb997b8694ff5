"""Threat model §14: a foreign data directory, planted links, a permissive umask, a full disk."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.backends import program
from tests.support.gateway import Patgate, clean_environ, complete, patgate
from tests.support.process import HANGS_SECONDS, wait_until
from tests.support.recorder import Recorder

STRANGER = 12_345
ROLE_SET = ("role", "set", "viewer", "things:read")
"""A command that may create the store."""


def config_file(directory: Path) -> tuple[Path, Path]:
    """A valid configuration, and its existing data directory."""
    config = complete(
        {"upstreams": {"app": {"servers": ["http://127.0.0.1:1"]}}, "roles": {}, "routes": [], "workers": 1}, directory
    )
    file = directory / "patgate.yaml"
    file.write_text(yaml.safe_dump(config))
    data = Path(config["data_dir"])
    data.mkdir(0o700)
    return file, data


def refused(file: Path, *command: str) -> str:
    """The message of a refused start, or of a refused command without a server."""
    done = patgate(*(command or ("serve",)), "--config", str(file), environ=clean_environ(None))
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("{")]
    assert done.returncode == 1 and len(lines) == 1 and "Traceback" not in done.stderr, (done.stdout, done.stderr)
    return lines[0]


@pytest.mark.parametrize("command", [("serve",), ("user", "list")], ids=" ".join)
def test_a_data_directory_of_another_user_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    file, data = config_file(tmp_path)
    if os.geteuid() == 0:
        os.chown(data, STRANGER, STRANGER)
    else:
        # Without the right to change the owner, use a directory of root.
        data = Path("/usr")
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "data_dir": str(data)}))
    before = sorted(data.iterdir())
    sentence = refused(file, *command)
    assert str(data) in sentence and f"belongs to another user (user id {data.stat().st_uid})" in sentence
    assert sorted(data.iterdir()) == before


@pytest.mark.parametrize("name", ["lock", "page", "secret.key", "patgate.db", "patgate.db-wal", "patgate.db-shm"])
def test_a_symbolic_link_among_its_files_is_refused_and_what_it_leads_to_is_untouched(
    tmp_path: Path, name: str
) -> None:
    file, data = config_file(tmp_path)
    victim = tmp_path / "victim"
    victim.write_bytes(b"of somebody else" * 8)
    os.chmod(victim, 0o644)
    (data / name).symlink_to(victim)
    sentence = refused(file)
    assert "data" in sentence, sentence
    assert victim.read_bytes() == b"of somebody else" * 8
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644


def test_a_socket_that_is_a_link_is_refused(tmp_path: Path) -> None:
    file, data = config_file(tmp_path)
    (data / "control.sock").symlink_to(tmp_path / "elsewhere")
    assert "control.sock in the data directory is not a socket" in refused(file).lower()
    assert not (tmp_path / "elsewhere").exists()


def test_with_umask_0_nothing_is_open_to_others(tmp_path: Path, backend: Recorder) -> None:
    config = {
        "data_dir": str(tmp_path / "new" / "data"),
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"editor": ["things:*"]},
    }
    (tmp_path / "new").mkdir()
    prefix = [program("sh"), "-c", 'umask 0; exec "$@"', "sh"]
    with Patgate(tmp_path / "node", config, prefix=prefix) as node:
        node.add_user("eve@example.org", "editor")
        wait_until((node.data / "addresses.json").exists, "the supervisor's start complete", process=node.process)
        kept = {path.name: stat.S_IMODE(path.stat().st_mode) for path in node.data.iterdir()}
        assert {"lock", "page", "secret.key", "addresses.json", "control.sock", "link.sock"} <= set(kept)
        assert {"patgate.db", "patgate.db-wal", "patgate.db-shm"} <= set(kept)
        assert not {name: oct(mode) for name, mode in kept.items() if mode & 0o077}
        assert stat.S_IMODE(node.data.stat().st_mode) == 0o700


def test_with_umask_0_directories_on_the_way_are_not_open_for_writing(tmp_path: Path) -> None:
    file, data = config_file(tmp_path)
    data.rmdir()
    deep = tmp_path / "a" / "b" / "data"
    done = subprocess.run(
        [program("sh"), "-c", 'umask 0; exec "$@"', "sh", program("python"), "-m", "proxy", *ROLE_SET],
        env=clean_environ({"PATGATE_CONFIG": str(file), "PATGATE_DATA_DIR": str(deep)}),
        capture_output=True,
        text=True,
        timeout=HANGS_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for directory in (deep, deep.parent, deep.parent.parent):
        assert not directory.stat().st_mode & 0o022, directory


SMALL_DISK = """
mount -t tmpfs -o size=1m patgate-test "$1" && mkdir -m 700 "$1/data" || exit 99
head -c "$2" /dev/zero > "$1/filling" || exit 99
shift 2
exec "$@"
"""


@pytest.mark.parametrize("free", [0, 4096, 8192, 16_384, 131_072])
def test_a_start_on_a_full_disk_says_so_and_where(tmp_path: Path, free: int) -> None:
    """The disk is a file system of one megabyte, mounted for this process only."""
    file, _ = config_file(tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "data_dir": str(small / "data")}))
    alone = [program("unshare"), "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    filling = 1024 * 1024 - 4096 - free
    serve = [program("python"), "-m", "proxy", "serve", "--config", str(file)]
    done = subprocess.run(
        [*alone, program("sh"), "-c", SMALL_DISK, "sh", str(small), str(filling), *serve],
        env=clean_environ(None),
        capture_output=True,
        text=True,
        timeout=HANGS_SECONDS,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("{")]
    assert done.returncode == 1 and len(lines) == 1, (done.stdout, done.stderr)
    assert "No space left" in lines[0] or "disk is full" in lines[0], lines
    assert str(small / "data") in lines[0], lines
