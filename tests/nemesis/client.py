"""One client: ``python -m tests.nemesis.client PLAN`` asks for verdicts without a pause and makes changes meanwhile.

The plan is a JSON document (``Plan``). The client prints a line of JSON a second (``Progress``), and ends when its
standard input ends: it finishes what it has begun, asks every node once more about its latest registers, and writes its
record.

A *changer* has a user with one token, whose verdicts are two registers: reading, and writing, for which it needs a
scope and a role. Both are hot: most decisions are about them, at all nodes, before, during and after each change. When
a change is answered, every free connection asks about it first: that is the moment at which a node that does not know
of it would accept what is revoked. A token that is gone is asked about again later.

What is in doubt (no answer, or ``outcome_unknown``) may happen at any later time. Every change that forbids is repeated
until it is acknowledged, at another node, and then holds; the user is then given up, because what a late execution of
the first attempt would do to later changes is not known, and would excuse too much.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from tests.history.checker import Outcome
from tests.nemesis.plan import Plan, Progress
from tests.nemesis.record import Record, Recorded
from tests.nemesis.wire import Answer, Asker, Register, call

READ: Final = "things:read"
WRITE: Final = "things:update"
TARGET: Final = "/v1/things/42"
TICK_SECONDS: Final = 0.005
PAUSE_SECONDS: Final = 0.05
REFUSED_SECONDS: Final = 0.02
WARM_SECONDS: Final = 0.2
SETTLE_SECONDS: Final = 0.03
"""How long a changer lets everybody ask about a change before its next one."""
LAST_SECONDS: Final = 60.0
"""How long changes that are under way may take at the end, when nothing fails any more."""
_UNKNOWN: Final = frozenset({"outcome_unknown", "in_doubt"})


@dataclass(slots=True)
class Holder:
    """A changer's user and token."""

    email: str
    user_id: str = ""
    token_id: str = ""
    read: Register | None = None
    write: Register | None = None

    @property
    def registers(self) -> list[Register]:
        return [each for each in (self.read, self.write) if each is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An acknowledged change: the answer, its record, and whether an earlier attempt is in doubt."""

    answer: Answer
    recorded: Recorded
    doubt: bool


class Refused(Exception):
    """A change was refused for a reason that the client does not know, or could not be made until the end."""


class GivenUp(Exception):
    """The state of the user is in doubt: take another one."""


class Client:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.record = Record()
        self.random = random.Random(plan.seed)
        self.stopping = asyncio.Event()
        self.over = False
        self.kinds: Counter[str] = Counter()
        self.allowed = [0] * len(plan.nodes)
        self._other: Counter[str] = Counter()
        self._hot: list[Register] = []
        self._dead: deque[Register] = deque(maxlen=512)
        self._urgent: list[deque[Register]] = [deque(maxlen=256) for _ in plan.nodes]
        self._seen: Counter[tuple[int, int]] = Counter()
        """How often a node has answered about a hot register."""
        self._askers: list[Asker] = []
        self._idle: deque[Asker] = deque()
        self._budget = 0.0

    # --- decisions ---

    def _answered(self, asker: Asker, register: Register, status: int, start: int, end: int, answer: bytes) -> None:
        if status == 200:
            self.allowed[asker.node] += 1
            self.record.decisions.add(register.number, asker.node, True, start, end)
        elif status in (401, 403):
            self.record.decisions.add(register.number, asker.node, False, start, end)
        else:
            self._other[f"n{asker.node} {status} {_reason(answer)}"] += 1
            asker.refused = True
        self._seen[register.number, asker.node] += 1

    def _free(self, asker: Asker) -> None:
        if self.over:
            return
        if asker.refused:
            # A node without a lease refuses faster than it decides: do not spend the machine on that.
            asker.refused = False
            asyncio.get_running_loop().call_later(REFUSED_SECONDS, self._idle.append, asker)
            return
        if self.plan.rate and not self._urgent[asker.node] and self._budget < 1.0:
            self._idle.append(asker)
            return
        register = self._next(asker.node)
        if register is None:
            self._idle.append(asker)
            return
        self._budget -= 1.0
        asker.ask(register)

    def _next(self, node: int) -> Register | None:
        if self._urgent[node]:
            return self._urgent[node].popleft()
        if self._dead and self.random.random() < 0.15:
            return self.random.choice(self._dead)
        return self.random.choice(self._hot) if self._hot else None

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._budget = min(self._budget + self.plan.rate * TICK_SECONDS, self.plan.rate * 0.1)
            self._wake()

    def _wake(self) -> None:
        for _ in range(len(self._idle)):
            asker = self._idle.popleft()
            if asker.connected and asker.asked is None:
                self._free(asker)

    def _ask_everywhere(self, registers: Sequence[Register], times: int) -> None:
        for urgent in self._urgent:
            for _ in range(times):
                urgent.extend(registers)
        self._wake()

    async def _warm(self, registers: Sequence[Register]) -> None:
        """Ask about them until every node that answers has had them in each worker's cache, most likely."""
        before = {key: self._seen[key] for key in self._keys(registers)}
        self._ask_everywhere(registers, self.plan.connections)
        await _until(partial(self._seen_since, before, 2), WARM_SECONDS)

    def _seen_since(self, before: Mapping[tuple[int, int], int], times: int) -> bool:
        return all(self._seen[key] >= count + times for key, count in before.items())

    def _keys(self, registers: Sequence[Register]) -> list[tuple[int, int]]:
        return [(register.number, node) for register in registers for node in range(len(self.plan.nodes))]

    def _register(self, name: str, method: str, token: str) -> Register:
        lines = [
            "GET /traefik HTTP/1.1", "Host: app.example.org", f"X-Forwarded-Method: {method}",
            f"X-Forwarded-Uri: {TARGET}", "X-Forwarded-Host: app.example.org", f"Authorization: Bearer {token}",
        ]  # fmt: skip
        register = Register(len(self.record.registers), name, "".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        self.record.registers.append(name)
        return register

    # --- changes ---

    async def _attempt(
        self, kind: str, node: int, method: str, target: str, body: object, *, registers: Sequence[Register],
        allows: bool, cause: str, action: str, about: str, key: str = "",
    ) -> tuple[Answer, Recorded]:  # fmt: skip
        """Make one call and record it, unless it certainly changed nothing."""
        patience = self.random.choice(self.plan.patience)
        answer = await call(self.plan.nodes[node][1], method, target, body, seconds=patience, key=key)
        doubt = answer.status == 0 or answer.reason in _UNKNOWN or answer.status == 500
        recorded = Recorded(
            kind=kind, registers=[each.name for each in registers], allows=allows, cause=cause, start=answer.start,
            end=answer.end, node=node, action=action, target=about,
            outcome=Outcome.ACKNOWLEDGED if answer.acknowledged else Outcome.IN_DOUBT if doubt else Outcome.FAILED,
        )  # fmt: skip
        if answer.acknowledged or doubt:
            self.record.changes.append(recorded)
        else:
            self._other[f"n{node} {kind} {answer.status} {answer.reason}"] += 1
        if answer.acknowledged:
            self.kinds[kind] += 1
        elif answer.status not in (-1, 0, 503, 500):
            raise Refused(f"{kind} at n{node}: {answer.status} {answer.reason}")
        return answer, recorded

    async def _change(
        self, kind: str, method: str, target: str, body: object = None, *, registers: Sequence[Register], allows: bool,
        cause: str, action: str, about: str, key: str = "", first: int | None = None,
    ) -> Made:  # fmt: skip
        """Make a change, again and again until it is acknowledged.

        Raises GivenUp if one that allows is in doubt: it is not repeated. Raises Refused at the end of the run.
        """
        doubt = False
        node = self.random.randrange(len(self.plan.nodes)) if first is None else first
        while True:
            answer, recorded = await self._attempt(
                kind, node, method, target, body, registers=registers, allows=allows, cause=cause, action=action,
                about=about, key=key,
            )  # fmt: skip
            if answer.acknowledged:
                self._ask_everywhere(registers, self.plan.connections)
                return Made(answer=answer, recorded=recorded, doubt=doubt)
            if recorded.outcome is Outcome.IN_DOUBT:
                doubt = True
                if allows and registers:
                    raise GivenUp
            if self.over:
                raise Refused(f"{kind}: not acknowledged until the end")
            node = (node + 1 + self.random.randrange(max(1, len(self.plan.nodes) - 1))) % len(self.plan.nodes)
            await asyncio.sleep(PAUSE_SECONDS * (1 + self.random.random()))

    async def _new_user(self, number: int, serial: int) -> Holder:
        email = f"{self.plan.name}-{number}-{serial}@example.org"
        made = await self._change(
            "user", "POST", "/users", {"email": email, "role": "editor"}, registers=(), allows=True, cause="user",
            action="account.user.add", about="", key=email,
        )  # fmt: skip
        made.recorded.target = user_id = str(made.answer.document["id"])
        return Holder(email, user_id)

    async def _mint(self, holder: Holder) -> None:
        """Give the holder a new token. One whose answer is lost is never used."""
        while True:
            name = f"t{len(self.record.registers)}"
            start = time.monotonic_ns()
            made = await self._change(
                "mint", "POST", "/tokens", {"user": holder.email, "name": name, "scopes": [READ, WRITE]}, registers=(),
                allows=True, cause="token", action="account.pat.mint", about="", key=f"{self.plan.name}-{name}-{start}",
            )  # fmt: skip
            made.recorded.target = str(made.answer.document["id"])
            if made.answer.document.get("token"):
                self._adopt(holder, made.answer, made.recorded)
                return
            # It was created by an attempt without an answer: only that answer would have had the value.

    def _adopt(self, holder: Holder, answer: Answer, recorded: Recorded) -> None:
        token = str(answer.document["token"])
        holder.token_id = str(answer.document["id"])
        name = f"{self.plan.name}-{len(self.record.registers)}"
        holder.read = self._register(f"{name} read", "GET", token)
        holder.write = self._register(f"{name} write", "PUT", token)
        for register in holder.registers:
            recorded.registers.append(register.name)
            self.record.unborn.append((register.name, "token"))
            self._hot.append(register)
        self._ask_everywhere(holder.registers, 2)

    def _bury(self, registers: Sequence[Register]) -> None:
        for register in registers:
            if register in self._hot:
                self._hot.remove(register)
                self._dead.append(register)

    # --- rounds ---

    async def _revoke(self, holder: Holder) -> None:
        registers = holder.registers
        await self._change(
            "revoke", "POST", f"/tokens/{holder.token_id}/revoke", registers=registers, allows=False, cause="token",
            action="account.pat.revoke", about=holder.token_id,
        )  # fmt: skip
        await asyncio.sleep(SETTLE_SECONDS)
        self._bury(registers)
        await self._mint(holder)

    async def _twice(self, holder: Holder) -> None:
        """Revoke at two nodes at once: each answer, also that it was revoked already, ends the token everywhere."""
        registers, count = holder.registers, len(self.plan.nodes)
        first = self.random.randrange(count)
        calls = [
            self._change(
                "revoke", "POST", f"/tokens/{holder.token_id}/revoke", registers=registers, allows=False,
                cause="token", action="account.pat.revoke", about=holder.token_id, first=node % count,
            )
            for node in (first, first + 1)
        ]  # fmt: skip
        await asyncio.gather(*calls)
        self.kinds["twice"] += 1
        await asyncio.sleep(SETTLE_SECONDS)
        self._bury(registers)
        await self._mint(holder)

    async def _rotate(self, holder: Holder) -> None:
        old = holder.registers
        made = await self._change(
            "rotate", "POST", f"/tokens/{holder.token_id}/rotate", registers=old, allows=False, cause="token",
            action="account.pat.rotate", about=holder.token_id,
        )  # fmt: skip
        born = replace(
            made.recorded, kind="rotate, the new value", registers=[], allows=True, action="", target=""
        )  # fmt: skip
        self._adopt(holder, made.answer, born)
        self.record.changes.append(born)
        if made.doubt:
            # The attempt in doubt may rotate the new value away at any time.
            late = replace(born, kind="rotate in doubt", allows=False, outcome=Outcome.IN_DOUBT)
            self.record.changes.append(late)
        await asyncio.sleep(SETTLE_SECONDS)
        self._bury(old)
        if made.doubt:
            raise GivenUp

    async def _there_and_back(
        self, holder: Holder, kind: str, forbid: tuple[str, str, object, str], allow: tuple[str, str, object, str],
        registers: Sequence[Register], about: str,
    ) -> None:  # fmt: skip
        method, target, body, action = forbid
        made = await self._change(
            kind, method, target, body, registers=registers, allows=False, cause=kind, action=action, about=about
        )
        await asyncio.sleep(SETTLE_SECONDS)
        if made.doubt:
            raise GivenUp
        method, target, body, action = allow
        await self._change(
            f"{kind} back", method, target, body, registers=registers, allows=True, cause=kind, action=action,
            about=about,
        )  # fmt: skip
        await asyncio.sleep(SETTLE_SECONDS)

    async def _round(self, holder: Holder, kind: str) -> None:
        if kind != "user":
            await self._warm(holder.registers)
        user, token = f"/users/{holder.email}", f"/tokens/{holder.token_id}"
        match kind:
            case "revoke":
                await self._revoke(holder)
            case "twice":
                await self._twice(holder)
            case "rotate":
                await self._rotate(holder)
            case "suspend":
                await self._there_and_back(
                    holder, kind, ("POST", f"{user}/suspend", None, "account.user.suspend"),
                    ("POST", f"{user}/resume", None, "account.user.resume"), holder.registers, holder.user_id,
                )  # fmt: skip
            case "role":
                await self._there_and_back(
                    holder, kind, ("POST", f"{user}/role", {"role": "viewer"}, "account.user.set_role"),
                    ("POST", f"{user}/role", {"role": "editor"}, "account.user.set_role"), holder.registers[1:],
                    holder.user_id,
                )  # fmt: skip
            case "scope":
                await self._there_and_back(
                    holder, kind, ("DELETE", f"{token}/scopes?scope={WRITE}", None, "account.pat.scopes"),
                    ("POST", f"{token}/scopes", {"scopes": [WRITE]}, "account.pat.scopes"), holder.registers[1:],
                    holder.token_id,
                )  # fmt: skip
            case _:
                raise AssertionError(kind)

    async def _changer(self, number: int) -> None:
        holder, serial = None, 0
        kinds, weights = list(self.plan.kinds), list(self.plan.kinds.values())
        while not self.stopping.is_set():
            try:
                if holder is None:
                    serial += 1
                    holder = await self._new_user(number, serial)
                    await self._mint(holder)
                await self._round(holder, self.random.choices(kinds, weights)[0])
            except (GivenUp, Refused) as error:
                if isinstance(error, Refused):
                    self.record.problems.append(str(error))
                if holder is not None:
                    self._bury(holder.registers)
                holder = None
            if self.plan.pause:
                await asyncio.sleep(self.plan.pause * (0.5 + self.random.random()))

    # --- the run ---

    async def run(self) -> None:
        stop = asyncio.create_task(self._wait_for_the_end(), name="wait for the end")
        ticks = asyncio.create_task(self._tick(), name="tick")
        report = asyncio.create_task(self._report(), name="report")
        for node, (path, _) in enumerate(self.plan.nodes):
            for _ in range(self.plan.connections):
                asker = Asker(path, node, self._answered, self._free)
                self._askers.append(asker)
                asker.start()
        changers = [
            asyncio.create_task(self._changer(number), name=f"changer {number}") for number in range(self.plan.changers)
        ]
        await self.stopping.wait()
        late = asyncio.get_running_loop().call_later(LAST_SECONDS, self._end)
        await asyncio.gather(*changers)
        await self._last_look()
        late.cancel()
        self.over = True
        for task in (stop, ticks, report):
            task.cancel()
        for asker in self._askers:
            asker.close()
        self.record.other = dict(self._other)
        self.record.write(Path(self.plan.directory), self.plan.name)
        print(json.dumps(asdict(self._progress())), flush=True)

    def _end(self) -> None:
        self.over = True

    async def _last_look(self) -> None:
        """Ask every node about each of the latest registers."""
        registers = [*self._dead, *self._hot]
        for register in registers:
            before = {key: self._seen[key] for key in self._keys([register])}
            self._ask_everywhere([register], 1)
            await _until(partial(self._seen_since, before, 1), 1.0)
            if self.over:
                return

    async def _wait_for_the_end(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.read()
        self.stopping.set()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            print(json.dumps(asdict(self._progress())), flush=True)

    def _progress(self) -> Progress:
        counted = {kind: count for kind, count in self.kinds.items() if kind != "twice"}
        return Progress(
            decisions=len(self.record.decisions), changes=sum(counted.values()), kinds=dict(self.kinds),
            allowed=list(self.allowed),
        )  # fmt: skip


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for the condition, at most so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        if condition() or time.monotonic() > deadline:
            return
        await asyncio.sleep(TICK_SECONDS)


def _reason(answer: bytes) -> str:
    """The reason of a refusal: a member of its problem document."""
    _, found, rest = answer.partition(b'"reason": "')
    return rest.partition(b'"')[0].decode(errors="replace") if found else ""


def main(argument: str) -> None:
    document: dict[str, Any] = json.loads(Path(argument).read_text())
    plan = Plan(**document | {"nodes": [(each[0], each[1]) for each in document["nodes"]]})

    def failed(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # A client that works half would make a run that proves nothing.
        print(context.get("message"), repr(context.get("exception")), file=sys.stderr, flush=True)
        os._exit(1)

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(failed)
        await Client(plan).run()

    uvloop.run(run())


if __name__ == "__main__":
    main(sys.argv[1])
