"""A store killed at any moment keeps every acknowledged change, and no part of any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.kit import ADMIN, opened
from tests.support.dialects import ON_SQLITE

pytestmark = ON_SQLITE

_WRITER = """
import asyncio, pathlib, sys
from tests.contract.kit import ADMIN, opened

async def work(kit, lane):
    for number in range(10_000):
        name = f"l{lane}n{number}"
        await kit.users.add(ADMIN, f"{name}@example.org", "viewer")
        made = await kit.mint(f"{name}@example.org", name)
        await kit.tokens.revoke(ADMIN, made.view.id)
        # One write smaller than PIPE_BUF: an acknowledgement is complete or absent.
        print(name, made.view.id, flush=True)

async def main():
    async with opened(pathlib.Path(sys.argv[1])) as kit:
        await kit.roles.sync_config(ADMIN, {"viewer": ["things:read"]})
        print("ready", flush=True)
        await asyncio.gather(*(work(kit, lane) for lane in range(4)))

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [0, 7, 23, 50])
async def test_a_killed_writer_loses_no_acknowledged_change(tmp_path: Path, acknowledged: int) -> None:
    root = Path(__file__).parents[2]
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    with writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(acknowledged + 1)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
    names = dict(line.split() for line in lines if line.endswith("\n") and " " in line)
    assert len(names) >= acknowledged
    async with opened(tmp_path) as kit:
        for name, token_id in names.items():
            user = await kit.users.show(ADMIN, f"{name}@example.org")
            token = await kit.tokens.show(ADMIN, token_id)
            assert (token.user_id, token.status.value) == (user.id, "revoked")
        epoch = await kit.intact()
        assert epoch >= 1 + 3 * len(names)
        async with kit.store.read() as rows:
            counted = await rows.connection.exec_driver_sql("SELECT count(*), max(epoch) FROM changes")
            assert tuple(counted.one()) == (epoch, epoch)
            events = await rows.log.newest(limit=epoch + 1)
            assert [event.epoch for event in events] == list(range(epoch, 0, -1))
            made = sum(event.action == "account.user.add" for event in events)
            users = await rows.connection.exec_driver_sql("SELECT count(*) FROM users")
            assert users.scalar_one() == made, "no user without its event, no event without its user"
            check = await rows.connection.exec_driver_sql("PRAGMA integrity_check")
            assert check.scalar_one() == "ok"
        await kit.users.add(ADMIN, "after@example.org", "viewer")
        assert await kit.intact() == epoch + 1
