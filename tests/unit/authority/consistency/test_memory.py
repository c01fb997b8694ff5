"""What a node remembers of its store survives a restart, whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from proxy.authority.consistency import memory
from proxy.core.errors import StoreUnavailable
from proxy.store.nodes.records import Remembered

REMEMBERED = Remembered(n=7, mark=b"\x00\xff" * 8, history="1/00000001/5/6", acceptances=frozenset({"a", "b"}))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    assert memory.load(tmp_path) is None
    memory.save(tmp_path, REMEMBERED)
    memory.save(tmp_path, REMEMBERED)
    assert memory.load(tmp_path) == REMEMBERED
    assert stat.S_IMODE((tmp_path / memory.FILE).stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [memory.FILE], "no draft is left"


def test_a_draft_that_a_crash_has_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / f".{memory.FILE}.{os.getpid()}").write_text("half")
    memory.save(tmp_path, REMEMBERED)
    assert memory.load(tmp_path) == REMEMBERED


@pytest.mark.parametrize("text", ["", "{", "[]", '{"change": 1}', '{"change": "x", "mark": "zz"}'])
def test_a_damaged_file_is_an_error_and_not_an_empty_memory(tmp_path: Path, text: str) -> None:
    (tmp_path / memory.FILE).write_text(text)
    with pytest.raises(StoreUnavailable, match="is damaged"):
        memory.load(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    memory.save(tmp_path, REMEMBERED)
    (tmp_path / memory.FILE).rename(tmp_path / "elsewhere")
    (tmp_path / memory.FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        memory.load(tmp_path)
    memory.save(tmp_path, REMEMBERED)
    assert not (tmp_path / memory.FILE).is_symlink()
