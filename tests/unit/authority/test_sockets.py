"""Unix sockets whose paths are removed: they are bound again, and it is logged."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.authority import sockets
from proxy.authority.sockets import bind_unix, keep_bound
from tests.unit.authority.waiting import until

FAILED = "a socket was removed and cannot be bound again"
BOUND = "a socket was removed and is bound again"


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    """The path of a socket that is kept bound, in a new directory with a short enough path."""
    monkeypatch.setattr(sockets, "CHECK_SECONDS", 0.01)
    caplog.set_level(logging.INFO, "patgate")
    return Path(tempfile.mkdtemp(prefix="patgate-")) / "control.sock"


@asynccontextmanager
async def kept(path: Path) -> AsyncIterator[list[socket.socket]]:
    """Keep ``path`` bound; yields the sockets bound so far."""
    first = bind_unix(path)
    bound = [first]

    async def serve(listener: socket.socket) -> None:
        bound.append(listener)

    task = asyncio.create_task(keep_bound(path, serve))
    await asyncio.sleep(0)  # it has checked the first one
    try:
        yield bound
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for listener in bound:
            listener.close()
        shutil.rmtree(path.parent, ignore_errors=True)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "patgate.authority.sockets"]


def attempts(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A function that returns how often binding was tried."""
    tried: list[Path] = []

    def bind(path: Path) -> socket.socket:
        tried.append(path)
        return bind_unix(path)

    monkeypatch.setattr(sockets, "bind_unix", bind)
    return lambda: len(tried)


async def test_a_path_that_another_file_uses_is_logged_once_and_bound_when_it_is_free(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = attempts(monkeypatch)
    async with kept(path) as bound:
        path.unlink()
        path.write_text("a file")
        await until(lambda: tried() >= 3)
        assert events(caplog) == [FAILED]
        path.unlink()
        await until(lambda: len(bound) == 2)
        await until(lambda: events(caplog) == [FAILED, BOUND])


async def test_an_unreadable_directory_is_logged_and_does_not_end_the_checks(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def closed(name: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if isinstance(name, (str, os.PathLike)) and Path(name).is_relative_to(path.parent):
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        return stat(name, *arguments, **options)

    async with kept(path) as bound:
        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", closed)
            patched.setattr(os, "lstat", closed)
            await until(lambda: events(caplog) == [FAILED])
        path.unlink()
        await until(lambda: len(bound) == 2)
        await until(lambda: events(caplog) == [FAILED, BOUND])


async def test_a_removed_directory_is_not_logged_because_the_lease_renewal_logs_it(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = attempts(monkeypatch)
    async with kept(path) as bound:
        shutil.rmtree(path.parent)
        await until(lambda: tried() >= 3)
        assert (events(caplog), len(bound)) == ([], 1)
        # The directory exists again, but the path is in use: now it is logged.
        path.mkdir(parents=True)
        await until(lambda: events(caplog) == [FAILED])
