"""One change on a disk that fails, then a crash: run by ``test_disk`` in a process whose disk fails on command.

Each case is a process of its own, forked here. It makes one change while the disk fails as the case says, looks
whether decisions go on, and is killed. Then the store is opened again, and what is in force must be what was said.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from proxy.core.errors import OutcomeUnknown, PatgateError, StoreUnavailable
from proxy.core.model import Grant
from proxy.store.dialects.sqlite import SqliteDatabase
from tests.contract.kit import ADMIN, Kit, opened
from tests.support.disk import Calls, FailingDisk, Written

ANN, BOB, CARL = "ann@example.org", "bob@example.org", "carl@example.org"
TOKENS: dict[str, str] = {}
"""The token of each, by id."""
ACKNOWLEDGED, REFUSED, UNKNOWN = "acknowledged", "refused", "unknown"


VERBS: Mapping[str, Callable[[Kit], Awaitable[object]]] = {
    "mint": lambda kit: kit.mint(ANN, "another"),
    "revoke": lambda kit: kit.tokens.revoke(ADMIN, TOKENS[ANN]),
    "rotate": lambda kit: kit.tokens.rotate(ADMIN, TOKENS[ANN]),
    "suspend": lambda kit: kit.users.suspend(ADMIN, ANN),
    "resume": lambda kit: kit.users.resume(ADMIN, BOB),
    "role up": lambda kit: kit.users.set_role(ADMIN, ANN, "admin"),
}


async def state(kit: Kit) -> str:
    """Everything that a verb may change."""
    async with kit.store.read() as rows:
        users = await rows.connection.exec_driver_sql(
            "SELECT id, status, role FROM users WHERE email < 'd' ORDER BY id"
        )
        tokens = await rows.connection.exec_driver_sql("SELECT id, status, hash FROM tokens ORDER BY id")
        return json.dumps([list(map(list, users)), list(map(list, tokens))])


async def prepare(directory: Path) -> None:
    async with opened(directory) as kit:
        await kit.basics()
        await kit.users.add(ADMIN, BOB, "viewer")
        await kit.users.add(ADMIN, CARL, "viewer")
        TOKENS.update({user: (await kit.mint(user, "t")).view.id for user in (ANN, BOB, CARL)})
        await kit.users.suspend(ADMIN, BOB)


async def crash(directory: Path, disk: FailingDisk, case: Mapping[str, int], verb: str, say: int) -> None:
    async with opened(directory) as kit:
        # The log has a history, as that of a store in use.
        await kit.users.add(ADMIN, "dora@example.org", "viewer")
        if case["restarted"]:
            # Every frame is in the database by now, so the change begins the log at its start again.
            assert isinstance(kit.store._database, SqliteDatabase)
            reader = kit.store._database._kept_open
            assert reader is not None
            ((busy, *_),) = await reader.exec_driver_sql("PRAGMA wal_checkpoint(RESTART)")
            assert not busy
        bystander = (await kit.tokens.show(ADMIN, TOKENS[CARL])).prefix
        before = await state(kit)
        disk.fail(
            Calls(case["calls"]),
            nth=case["nth"],
            times=case["times"],
            error=case["error"],
            written=Written(case["written"]),
        )
        said = ACKNOWLEDGED
        try:
            await VERBS[verb](kit)
        except OutcomeUnknown:
            said = UNKNOWN
        except StoreUnavailable:
            said = REFUSED
        failed, unsynced = disk.failed, disk.unsynced
        problems = []
        if said == UNKNOWN and case["times"] == 0:
            try:
                await kit.users.add(ADMIN, "eve@example.org", "viewer")
                problems.append("a change was acknowledged while the log was in doubt")
            except OutcomeUnknown:
                problems.append("a second change is in doubt")
            except PatgateError:
                pass
        disk.work()
        if not isinstance(await kit.resolve(bystander), Grant):
            problems.append("a token that the change did not touch is refused")
        # A write that failed leaves no whole transaction, on disk or not; what was written whole must be overwritten.
        # (The first sync of a log that begins again is that of its header, before there is a transaction.)
        whole = case["calls"] == Calls.SYNC and not (case["restarted"] and case["nth"] == 1)
        if unsynced and (said == ACKNOWLEDGED or (said == REFUSED and whole)):
            problems.append(f"it was {said} with {unsynced} writes that are not on disk")
        if said != UNKNOWN and (await state(kit) != before) != (said == ACKNOWLEDGED):
            problems.append(f"it was {said}, and is not so while the process lives")
        os.write(say, json.dumps([said, failed, before, problems]).encode())
        os.kill(os.getpid(), signal.SIGKILL)


async def look(directory: Path, said: str, before: str) -> list[str]:
    """What is wrong after the restart."""
    problems = []
    async with opened(directory) as kit:
        changed = await state(kit) != before
        if said == ACKNOWLEDGED and not changed:
            problems.append("it was acknowledged and is lost")
        if said == REFUSED and changed:
            problems.append("it was refused and has come into force")
        await kit.users.add(ADMIN, "after@example.org", "viewer")
        await kit.intact()
        async with kit.store.read() as rows:
            check = await rows.connection.exec_driver_sql("PRAGMA integrity_check")
            if check.scalar_one() != "ok":
                problems.append("the file is damaged")
    return problems


def run(
    template: Path, directory: Path, disk: FailingDisk, verb: str, case: Mapping[str, int]
) -> tuple[str, int, list[str]]:
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(template, directory)
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(hear)
            asyncio.run(crash(directory, disk, case, verb, say))
        except Exception:  # noqa: BLE001 - the parent reports it
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(say)
    with os.fdopen(hear, "rb") as pipe:
        heard = pipe.read()
    _, status = os.waitpid(child, 0)
    disk.work()
    if not heard or not os.WIFSIGNALED(status):
        return REFUSED, 0, [f"the process ended by itself: {status}"]
    said, failed, before, problems = json.loads(heard)
    return said, failed, problems + asyncio.run(look(directory, said, before))


def main() -> None:
    """Arguments: a directory, and the cases as JSON: verb, and what fails; ``nth`` 0 is every one in its turn."""
    directory = Path(sys.argv[1])
    disk = FailingDisk.here()
    template = directory / "template"
    template.mkdir()
    asyncio.run(prepare(template))
    for verb, case in json.loads(sys.argv[2]):
        nth = case["nth"] or 1
        while True:
            said, failed, problems = run(template, directory / "case", disk, verb, {**case, "nth": nth})
            if case["nth"] == 0 and failed == 0 and not problems:
                break  # there are no more calls
            name = f"{verb}: {Calls(case['calls']).name} {nth} {errno.errorcode[case['error']]} times {case['times']}"
            print(json.dumps([name, said, failed, problems]), flush=True)
            if case["nth"] or failed == 0:
                break
            nth += 1


if __name__ == "__main__":
    main()
