"""The secret key: decoding of texts, and the key file that a node creates."""

import base64
import os
import threading
from pathlib import Path

import pytest

from proxy.core.errors import ConfigurationError
from proxy.settings.sources.secret import KEY_FILE, decode_key, load_or_create
from tests.support.users import give_away

DATABASE = "patgate.db"
RAW = bytes(range(32))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (RAW.hex(), RAW),
        (RAW.hex().upper(), RAW),
        (base64.b64encode(RAW).decode(), RAW),
        (base64.urlsafe_b64encode(b"\xff" * 32).decode().rstrip("="), b"\xff" * 32),
        ("0123456789abcdef" * 2, b"0123456789abcdef" * 2),
        ("a sentence of more than thirty-two bytes", b"a sentence of more than thirty-two bytes"),
        ("ä" * 16, "ä".encode() * 16),
        ("x" * 31, None),
        ("", None),
    ],
)
def test_a_text_decodes_to_one_key(text: str, key: bytes | None) -> None:
    assert decode_key(text) == key


def test_a_key_is_created_once_and_private_to_its_user(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    key = load_or_create(data_dir, data_dir / DATABASE)
    assert len(key) == 32
    assert load_or_create(data_dir, data_dir / DATABASE) == key
    assert load_or_create(tmp_path / "other", tmp_path / "other" / DATABASE) != key
    assert (data_dir / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert os.listdir(data_dir) == [KEY_FILE]


@pytest.mark.parametrize("name", [DATABASE, f"{DATABASE}-wal"])
def test_no_key_is_created_for_an_existing_store_without_its_key(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigurationError, match="is missing") as raised:
        load_or_create(tmp_path, tmp_path / DATABASE)
    assert str(tmp_path / KEY_FILE) in str(raised.value) and "secret_key" in str(raised.value)
    assert os.listdir(tmp_path) == [name]


def test_simultaneous_starts_agree_on_one_key(tmp_path: Path) -> None:
    keys: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: keys.append(load_or_create(tmp_path, tmp_path / DATABASE))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1
    assert os.listdir(tmp_path) == [KEY_FILE]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    load_or_create(tmp_path, tmp_path / DATABASE)
    (tmp_path / KEY_FILE).chmod(mode)
    with pytest.raises(ConfigurationError, match=r"open to other users; its mode must be 0600\.$"):
        load_or_create(tmp_path, tmp_path / DATABASE)


def test_a_short_key_is_refused_and_not_echoed(tmp_path: Path) -> None:
    path = tmp_path / KEY_FILE
    path.touch(0o600)
    path.write_text("hunter2\n")
    with pytest.raises(ConfigurationError, match=r"is shorter than 32 bytes\.$") as caught:
        load_or_create(tmp_path, tmp_path / DATABASE)
    assert "hunter2" not in str(caught.value)


def test_a_key_that_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("x" * 64)
    (tmp_path / KEY_FILE).symlink_to(tmp_path / "target")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        load_or_create(tmp_path, tmp_path / DATABASE)
    (tmp_path / KEY_FILE).unlink()
    os.mkfifo(tmp_path / KEY_FILE, 0o600)
    with pytest.raises(ConfigurationError, match="is not a regular file"):
        load_or_create(tmp_path, tmp_path / DATABASE)
    (tmp_path / KEY_FILE).unlink()
    (tmp_path / KEY_FILE).mkdir()
    with pytest.raises(ConfigurationError):
        load_or_create(tmp_path, tmp_path / DATABASE)


def test_a_directory_that_cannot_be_created_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"^The secret key .* cannot be used: Not a directory\.$"):
        load_or_create(tmp_path / "file" / "data", tmp_path / "file" / "data" / DATABASE)


def test_a_key_file_of_another_user_is_refused_even_with_mode_0600(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_or_create(tmp_path, tmp_path / DATABASE)
    give_away(tmp_path / KEY_FILE, monkeypatch)
    with pytest.raises(ConfigurationError, match=r"belongs to another user\.$"):
        load_or_create(tmp_path, tmp_path / DATABASE)
