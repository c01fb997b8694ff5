"""One change of an authority that is killed, or whose disk fails, at one system call: run by ``test_crash_points``.

Each case is a process of its own, forked here: a whole authority over a copy of a data directory, with strace attached.
Afterwards the files are read as the next start reads them, and another authority starts on them. A change is all of
its rows in every table, with its audit event and its number, or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import sys
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from proxy.authority.runtime import CONFIGURATION, Authority
from proxy.core.errors import OutcomeUnknown, StoreUnavailable
from proxy.core.model import Grant
from proxy.services.tokens.issuance import TokenRequest
from proxy.settings.model import Argon2, Settings
from tests.contract.kit import ADMIN
from tests.support.stores import migrated
from tests.support.strace import Call, Tracer, allow_tracing

ACKNOWLEDGED, REFUSED, UNKNOWN, NOTHING = "acknowledged", "refused", "unknown", ""
"""What the process said of its change; nothing if it was killed before."""
KILL: Final = "signal=KILL"
WHOLE, NONE = "whole", "none"
"""What the files contain of the change."""

ANN, BOB = "ann@example.org", "bob@example.org"
_LOG_FRAMES: Final = 1000
"""SQLite copies the log into the database when a commit makes it this long (``wal_autocheckpoint``)."""
_FRAME: Final = 24 + 4096

Table = Mapping[tuple[Any, ...], Mapping[str, Any]]
TOKENS: dict[str, str] = {}
"""The id of each user's token, by email."""
VALUES: dict[str, str] = {}


async def _mint(authority: Authority) -> None:
    await authority.services.tokens.create(ADMIN, TokenRequest(user=ANN, name="another"))


async def _revoke(authority: Authority) -> None:
    await authority.services.tokens.revoke(ADMIN, TOKENS[ANN])


async def _rotate(authority: Authority) -> None:
    await authority.services.tokens.rotate(ADMIN, TOKENS[ANN])


async def _role(authority: Authority) -> None:
    await authority.services.users.set_role(ADMIN, ANN, "viewer")


async def _permissions(authority: Authority) -> None:
    await authority.services.roles.sync_config(CONFIGURATION, {"editor": ["things:read"], "viewer": ["things:read"]})


VERBS: Final[Mapping[str, Callable[[Authority], Awaitable[None]]]] = {
    "mint": _mint,
    "revoke": _revoke,
    "rotate": _rotate,
    "role": _role,
    "permissions": _permissions,
}
START: Final = "start"
"""Besides the verbs: the start of an authority, on files that a killed one has left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """``fault`` at the ``nth`` call named ``call`` (as in strace's ``inject``); "" for no fault.

    ``template``: the files that the authority starts on.
    """

    verb: str
    fault: str = ""
    call: str = ""
    nth: int = 0
    template: str = "closed"

    @property
    def inject(self) -> str:
        """What strace is to do."""
        return self.fault and f"{self.call}:{self.fault}:when={self.nth}"

    @property
    def recovers(self) -> bool:
        """Whether the process lives on after the fault."""
        return self.fault not in (KILL, "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """``call`` is the call at which the fault came; None if the change made fewer calls.

    ``committed``: whether the log had the whole change on disk by then; ``complete``: whether it had it at all.
    """

    case: Case
    said: str
    found: str
    call: Call | None
    committed: bool
    complete: bool
    problems: list[str]

    def line(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))


def _copy(source: Path, target: Path) -> None:
    """A data directory without its sockets."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.sock"))


def settings_of(directory: Path) -> Settings:
    return Settings(
        brand="acme",
        data_dir=directory,
        roles={"editor": ("things:*",), "viewer": ("things:read",)},
        argon2=Argon2(memory=64 * 1024, iterations=1),
    )


def _tables(directory: Path, scratch: Path) -> dict[str, Table]:
    """Every row of the store, as the next start would read it: from a copy, because reading writes."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for file in directory.glob("patgate.db*"):
        shutil.copy(file, scratch)
    with contextlib.closing(sqlite3.connect(scratch / "patgate.db")) as connection:
        connection.row_factory = sqlite3.Row
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok", "the file is damaged"
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        tables: dict[str, Table] = {}
        for name in names:
            keys = [row["name"] for row in connection.execute(f"PRAGMA table_info({name})") if row["pk"]]
            rows = [dict(row) for row in connection.execute(f"SELECT * FROM {name}")]
            tables[name] = {tuple(row[key] for key in keys or row): row for row in rows}
    return tables


def difference(before: Mapping[str, Table], after: Mapping[str, Table]) -> list[str]:
    """How two states differ: for each table rows added and removed, and the changed columns of the others, sorted."""
    found: list[str] = []
    for table in sorted(before.keys() | after.keys()):
        old, new = before.get(table, {}), after.get(table, {})
        found += [f"+ {table}"] * len(new.keys() - old.keys())
        found += [f"- {table}"] * len(old.keys() - new.keys())
        for key in sorted(old.keys() & new.keys()):
            columns = [name for name in new[key] if new[key][name] != old[key].get(name)]
            if columns:
                found.append(f"~ {table} {' '.join(sorted(columns))}")
    return found


class Harness:
    """Runs cases in ``directory``, whose path must be short: it contains sockets."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data = directory / "data"
        self._before: dict[str, dict[str, Table]] = {}
        self._expected: dict[tuple[str, str], list[str]] = {}
        """What each change changes, by verb and template: as an undisturbed run changed it."""

    def prepare(self) -> None:
        """Create the data directories that cases begin with."""
        closed = self._directory / "closed"
        closed.mkdir(mode=0o700)
        migrated(closed, key=True)
        asyncio.run(_basics(closed))
        # Killed with a log that the next change or so makes long enough for SQLite to copy it into the database.
        self._killed(closed, "full", _fill)
        # Killed when the change was stored and not announced: the page is one behind.
        self._killed(closed, "killed", _unannounced)
        for name in ("closed", "full", "killed"):
            self._before[name] = _tables(self._directory / name, self._directory / "scratch")

    def _killed(self, source: Path, name: str, work: Callable[[Authority], Awaitable[None]]) -> None:
        target = self._directory / name
        _copy(source, target)
        child = os.fork()
        if not child:
            with _ending():
                asyncio.run(_until_killed(target, work))
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"the process that prepares {name!r} ended by itself: {status}"

    def run(self, case: Case) -> tuple[Result, list[Call]]:
        """Run one case."""
        shutil.rmtree(self._data, ignore_errors=True)
        _copy(self._directory / case.template, self._data)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        child = os.fork()
        if not child:
            ours.close()
            with _ending():
                asyncio.run(_child(self._data, case, theirs))
        theirs.close()
        with ours, ours.makefile("r") as said:
            assert said.readline() == "ready\n", "the authority did not start"
            tracer = Tracer(child, self._directory / "trace", inject=case.inject)
            ours.sendall(b"go\n")
            lines = said.read().splitlines()
        _, status = os.waitpid(child, 0)
        calls = tracer.calls()
        problems = [line.removeprefix("problem: ") for line in lines if line.startswith("problem: ")]
        if not os.WIFSIGNALED(status):
            problems.append(f"the process ended by itself: {status}")
        answer = next((line for line in lines if not line.startswith("problem: ")), NOTHING)
        hit = self._hit(case, calls, answer)
        try:
            found = self._look(case, answer)
            asyncio.run(_restart(self._data, case, found))
        except Exception:  # noqa: BLE001 - the test reports it
            found = "?"
            problems.append(traceback.format_exc())
        earlier = calls if hit is None else calls[: calls.index(hit)]
        result = Result(
            case=case,
            said=answer,
            found=found,
            call=hit,
            committed=committed(earlier),
            complete=committed(calls[: len(earlier) + 1]),
            problems=problems,
        )
        return result, calls

    def _hit(self, case: Case, calls: list[Call], answer: str) -> Call | None:
        """The call of the fault. A killed process leaves an unfinished last call."""
        if case.fault == KILL:
            return calls[-1] if calls and answer == NOTHING else None
        return next((call for call in calls if call.injected), None)

    def _look(self, case: Case, answer: str) -> str:
        """What is in the files: the whole change or none of it. An AssertionError says what is wrong."""
        changed = difference(self._before[case.template], _tables(self._data, self._directory / "scratch"))
        if case.recovers and case.verb != START:
            changed = _without_second(changed)
        if case.verb == START:
            assert not changed, f"a start changed {changed}"
            return NONE
        if not case.fault:
            self._expected[case.verb, case.template] = changed
        expected = self._expected[case.verb, case.template]
        assert changed in ([], expected), f"half of the change is stored: {changed} of {expected}"
        assert expected
        found = WHOLE if changed else NONE
        assert not (answer == ACKNOWLEDGED and found == NONE), "it was acknowledged and is lost"
        assert not (answer == REFUSED and found == WHOLE), "it was refused and is in force"
        return found


def committed(calls: Sequence[Call]) -> bool:
    """Whether these calls end with a change in the log: a sync after more than the log's header was written."""
    log = [call.name for call in calls if call.path.endswith("-wal")]
    frames = log.index("fdatasync") + 1 if log[:2] == ["pwrite64", "fdatasync"] else 0
    return "fdatasync" in log[frames:]


async def _basics(directory: Path) -> None:
    async with Authority(settings_of(directory)) as authority:
        for email in (ANN, BOB):
            await authority.services.users.add(ADMIN, email, "editor")
            created = await authority.services.tokens.create(ADMIN, TokenRequest(user=email, name="t"))
            TOKENS[email], VALUES[email] = created.view.id, created.value


async def _until_killed(directory: Path, work: Callable[[Authority], Awaitable[None]]) -> None:
    async with Authority(settings_of(directory)) as authority:
        await work(authority)
        os.kill(os.getpid(), signal.SIGKILL)


async def _fill(authority: Authority) -> None:
    log = authority._settings.data_dir / "patgate.db-wal"
    step, role = 0, 0
    while log.stat().st_size + step < _LOG_FRAMES * _FRAME:
        before = log.stat().st_size
        role += 1
        await authority.services.users.set_role(ADMIN, BOB, ("viewer", "editor")[role % 2])
        step = max(step, log.stat().st_size - before)


async def _unannounced(authority: Authority) -> None:
    async def announced(_epoch: int, _keys: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    authority._store.on_commit = announced
    await _revoke(authority)


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """A forked process ends here, whatever happens."""
    try:
        yield
    except BaseException:  # noqa: BLE001 - reported to the parent by the exit status
        traceback.print_exc()
    finally:
        os._exit(1)


async def _child(directory: Path, case: Case, parent: socket.socket) -> None:
    allow_tracing()
    loop = asyncio.get_running_loop()
    parent.setblocking(False)

    async def begin() -> None:
        # Not with write(2): that is one of the calls at which the process may be killed.
        await loop.sock_sendall(parent, b"ready\n")
        await loop.sock_recv(parent, 8)

    async def say(text: str) -> None:
        await loop.sock_sendall(parent, f"{text}\n".encode())

    if case.verb == START:
        await begin()
        try:
            async with Authority(settings_of(directory), successor=True):
                await say(ACKNOWLEDGED)
                os.kill(os.getpid(), signal.SIGKILL)
        except StoreUnavailable:
            await say(REFUSED)
        os.kill(os.getpid(), signal.SIGKILL)
    async with Authority(settings_of(directory)) as authority:
        await begin()
        try:
            await VERBS[case.verb](authority)
            await say(ACKNOWLEDGED)
        except OutcomeUnknown:
            await say(UNKNOWN)
        except StoreUnavailable:
            await say(REFUSED)
        if case.recovers:
            await _still_works(authority, say)
        os.kill(os.getpid(), signal.SIGKILL)


async def _still_works(authority: Authority, say: Callable[[str], Awaitable[None]]) -> None:
    """The disk works again: so does the authority, without a restart."""
    if not isinstance(await authority.verify(VALUES[BOB], prove=True), Grant):
        await say("problem: a token that the change did not touch is refused")
    try:
        await authority.services.users.add(ADMIN, "carl@example.org", "viewer")
    except StoreUnavailable as error:
        await say(f"problem: the next change is refused: {error}")


def _without_second(changed: list[str]) -> list[str]:
    """Without the change that ``_still_works`` made."""
    left = list(changed)
    for line in ("+ users", "+ changes", "+ audit_events"):
        assert line in left, f"the change after the fault is lost: {changed}"
        left.remove(line)
    if not any(line.startswith("+ ") for line in left):
        left = [line for line in left if line not in ALWAYS]
    return left


ALWAYS: Final = ("~ audit_chain head_hash head_n", "~ change_head mark n")
"""What every change changes."""


async def _restart(directory: Path, case: Case, found: str) -> None:
    """Another authority starts, has the change or not, and makes the next one."""
    async with Authority(settings_of(directory), successor=True) as authority:
        store = authority._store
        epoch = await store.epoch()
        assert authority.epoch == epoch, "the page has another number than the store"
        await authority.services.users.add(ADMIN, "after@example.org", "viewer")
        checked = await store.verify_audit()
        assert checked.problem is None, checked.problem
        assert checked.events == epoch + 1 == authority.epoch, "one audit event for each change"
        revoked = case.template == "killed" or (case.verb == "revoke" and found == WHOLE)
        rotated = case.verb == "rotate" and found == WHOLE
        granted = isinstance(await authority.verify(VALUES[ANN], prove=True), Grant)
        assert granted != revoked or rotated, "the token's verdict is not what the files say"
        assert isinstance(await authority.verify(VALUES[BOB], prove=True), Grant)


def main() -> None:
    """Run cases: for each verb, template and fault in turn, each call or a sample of them.

    Arguments: a directory, and JSON with a list of {verb, template, fault, every}. With ``every`` 1 it is each call;
    with n the first and the last two, those beside each sync, and every n-th other.
    """
    harness = Harness(Path(sys.argv[1]))
    harness.prepare()
    calls: dict[tuple[str, str], list[Call]] = {}
    for order in json.loads(sys.argv[2]):
        verb, template, fault, every = order["verb"], order["template"], order["fault"], order["every"]
        if (verb, template) not in calls:
            result, calls[verb, template] = harness.run(Case(verb=verb, template=template))
            assert not result.problems, result.problems
        for name, nth in points(calls[verb, template], every):
            result, _ = harness.run(Case(verb=verb, fault=fault, call=name, nth=nth, template=template))
            print(result.line(), flush=True)


def points(calls: Sequence[Call], every: int) -> list[tuple[str, int]]:
    """The calls to disturb, in their order: each by its name and its number among its thread's calls of that name.

    strace counts each thread's calls by themselves, so a call is left out if another thread comes to this number first.
    """
    last = len(calls)
    chosen = set(range(1, last + 1, every)) | {1, 2, last - 1, last}
    chosen |= {n + beside for n, call in enumerate(calls, 1) if "sync" in call.name for beside in (-1, 0, 1)}
    counted: Counter[tuple[int, str]] = Counter()
    found: dict[tuple[str, int], bool] = {}
    for n, call in enumerate(calls, 1):
        counted[call.thread, call.name] += 1
        found.setdefault((call.name, counted[call.thread, call.name]), n in chosen)
    return [point for point, wanted in found.items() if wanted]


if __name__ == "__main__":
    main()
