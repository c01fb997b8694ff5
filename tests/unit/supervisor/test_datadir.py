"""The data directory: private, for one gateway at a time, locked until the last process has ended."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.core.errors import DataDirBusy, StoreUnavailable
from proxy.supervisor import datadir
from tests.support.process import HANGS_SECONDS


def test_the_directory_is_created_readable_by_its_owner_alone(tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    datadir.prepare(data)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_an_existing_directory_is_made_readable_by_its_owner_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    datadir.prepare(data)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_a_file_in_place_of_the_directory_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StoreUnavailable, match=r"^The data directory .*data cannot be used: .*\.$"):
        datadir.prepare(tmp_path / "data")


async def test_a_busy_lock_is_refused_with_the_name_of_its_holder(tmp_path: Path) -> None:
    with (
        await datadir.lock(tmp_path, "serve"),
        pytest.raises(DataDirBusy, match=f"in use by another patgate .started as process {os.getpid()}, serve.[.]$"),
    ):
        await datadir.lock(tmp_path, "serve", patience=0.0)


async def test_the_lock_waits_for_a_holder_that_ends(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None and holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert datadir.try_lock(tmp_path, "a command") is None
    holder.stdin.close()
    with await datadir.lock(tmp_path, "serve", patience=HANGS_SECONDS):
        pass
    holder.stdout.close()
    assert holder.wait() == 0


async def test_a_child_that_inherited_the_lock_keeps_it_after_its_parent_released_it(tmp_path: Path) -> None:
    held = await datadir.lock(tmp_path, "serve")
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=(held.fd,)
    )
    held.release()
    assert datadir.try_lock(tmp_path, "serve") is None
    child.communicate()
    with await datadir.lock(tmp_path, "serve", patience=0.0):
        pass


async def test_a_removed_or_replaced_directory_is_not_ours(tmp_path: Path) -> None:
    data = tmp_path / "data"
    datadir.prepare(data)
    with await datadir.lock(data, "serve") as held:
        assert held.is_of(data)
        data.rename(tmp_path / "away")
        assert not held.is_of(data)
        datadir.prepare(data)
        with await datadir.lock(data, "serve") as other:
            assert (held.is_of(data), other.is_of(data)) == (False, True)


def test_addresses_are_published_atomically_and_removed(tmp_path: Path) -> None:
    datadir.write_addresses(tmp_path, {"proxy": "127.0.0.1:8080"})
    assert json.loads((tmp_path / "addresses.json").read_text()) == {"proxy": "127.0.0.1:8080"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["addresses.json"]
    datadir.forget_addresses(tmp_path)
    datadir.forget_addresses(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreUnavailable, match=r"^The data directory .*gone cannot be written to: .*\.$"):
        datadir.write_addresses(tmp_path / "gone", {"proxy": "127.0.0.1:8080"})


def test_a_directory_of_another_user_is_refused_and_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: data.stat().st_uid + 1)
    with pytest.raises(StoreUnavailable, match=rf"belongs to another user .user id {data.stat().st_uid}.: run"):
        datadir.prepare(data)
    assert stat.S_IMODE(data.stat().st_mode) == 0o755


def test_a_lock_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock").write_text("kept")
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(StoreUnavailable, match="not a regular file of this user"):
        datadir.try_lock(tmp_path, "serve")
    assert (tmp_path / "lock").read_text() == "kept"


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StoreUnavailable, match=r"its lock is a symbolic link\.$"):
        datadir.try_lock(tmp_path, "serve")
    assert (tmp_path / "victim").read_text() == "kept"


def test_links_in_place_of_the_address_files_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("kept")
    for name in ("addresses.json", f".addresses.json.{os.getpid()}"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    datadir.write_addresses(tmp_path, {"proxy": "127.0.0.1:8080"})
    assert (tmp_path / "victim").read_text() == "kept"
    assert stat.S_IMODE((tmp_path / "addresses.json").lstat().st_mode) == 0o600


_HOLDER = """
import sys
from pathlib import Path
from proxy.supervisor import datadir
held = datadir.try_lock(Path(sys.argv[1]), "a command")
print("held", flush=True)
sys.stdin.read()
"""
