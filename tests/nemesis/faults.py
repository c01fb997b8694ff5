"""The faults: each begins, lasts, and ends; then all is as before.

A fault has a *target*, and no two faults have the same one at a time: a node's processes, a node's network, or the
database. Faults of different targets overlap.
"""

from __future__ import annotations

import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from tests.nemesis.node import Node
from tests.support.faulty_proxy import FaultyProxy
from tests.support.netns import Host

LEASE_SECONDS: Final = 2.0
DELIVERED_SECONDS: Final = 0.05
"""How long it takes, at most, until a node has what the proxy has passed on."""


class Fault(ABC):
    """One fault that begins once and ends once. ``seconds`` is how long it lasts."""

    kind: str
    target: str
    seconds: float

    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def end(self) -> None: ...

    def __str__(self) -> str:
        return f"{self.kind} of {self.target}, {self.seconds:.1f} s"


class Freeze(Fault):
    """Processes stop without their noticing: a suspended virtual machine, a host that swaps.

    With ``role``, only those of this role. They go on where they were, with old caches and full buffers.
    """

    def __init__(self, node: Node, seconds: float, role: str = "") -> None:
        self.kind = f"freeze {role or 'node'}"
        self.target = f"processes of n{node.number}"
        self.seconds = seconds
        self._node = node
        self._role = role

    def begin(self) -> None:
        node = self._node
        pids = node.of_role(self._role) if self._role else node.pids()
        # Of several workers one: the others show what the frozen one should have learned.
        node.pause(pids[:1] if self._role else pids)

    def end(self) -> None:
        self._node.resume()


class Kill(Fault):
    """SIGKILL to one process of a role; the supervisor replaces it."""

    def __init__(self, node: Node, role: str) -> None:
        self.kind = f"kill {role}"
        self.target = f"processes of n{node.number}"
        self.seconds = 0.5
        self._node = node
        self._role = role

    def begin(self) -> None:
        self._node.kill_one(self._role)

    def end(self) -> None:
        pass


class Crash(Fault):
    """SIGKILL to every process of a node at once; it is started again afterwards."""

    def __init__(self, node: Node, seconds: float) -> None:
        self.kind = "kill node"
        self.target = f"processes of n{node.number}"
        self.seconds = seconds
        self._node = node

    def begin(self) -> None:
        self._node.kill_all()

    def end(self) -> None:
        self._node.launch()


class Restart(Fault):
    """SIGTERM: the node leaves in order, and is started again."""

    def __init__(self, node: Node, seconds: float) -> None:
        self.kind = "stop node"
        self.target = f"processes of n{node.number}"
        self.seconds = seconds
        self._node = node

    def begin(self) -> None:
        self._node.wanted = False
        self._node.process.signal(signal.SIGTERM)

    def end(self) -> None:
        # What has not ended by now is killed.
        self._node.stop()
        self._node.launch()


class Link(Fault):
    """The link of a node's namespace to PostgreSQL: ``cut``, ``unplug``, ``mute`` or ``deafen`` (``support.netns``)."""

    def __init__(self, node: Node, host: Host, how: Callable[[Host], None], seconds: float) -> None:
        self.kind = f"link {how.__name__}"
        self.target = f"network of n{node.number}"
        self.seconds = seconds
        self._host = host
        self._how = how

    def begin(self) -> None:
        self._how(self._host)

    def end(self) -> None:
        self._host.mend()


class Proxied(Fault):
    """A command to the proxy between a node and PostgreSQL (``support.faulty_proxy``)."""

    def __init__(self, node: Node, proxy: FaultyProxy, command: str, seconds: float) -> None:
        self.kind = f"proxy {command}"
        self.target = f"network of n{node.number}"
        self.seconds = seconds
        self._proxy = proxy
        self._command = command

    def begin(self) -> None:
        self._proxy.command(self._command)

    def end(self) -> None:
        self._proxy.command("mend")


class LateReply(Fault):
    """Answers of PostgreSQL are held back for a while, then delivered, and the node is cut off at once.

    A renewal that was executed long ago is answered now, without a hint of the changes since then. ``hold`` seconds are
    less than the time that the node waits for an answer.
    """

    def __init__(self, node: Node, proxy: FaultyProxy, hold: float, seconds: float) -> None:
        self.kind = "proxy late reply"
        self.target = f"network of n{node.number}"
        self.seconds = seconds
        self._proxy = proxy
        self._hold = hold

    def begin(self) -> None:
        self._proxy.command("notify off")
        self._proxy.command("stall down")
        time.sleep(self._hold)
        # What the node says next is not answered any more.
        self._proxy.command("stall up")
        self._proxy.command("release down")
        time.sleep(DELIVERED_SECONDS)
        self._proxy.command("cut")

    def end(self) -> None:
        self._proxy.command("mend")


class Database(Fault):
    """Something that is done to PostgreSQL: ``begin`` and ``end`` are given."""

    def __init__(
        self, kind: str, seconds: float, begin: Callable[[], object], end: Callable[[], object] = lambda: None
    ) -> None:
        self.kind = kind
        self.target = "database"
        self.seconds = seconds
        self._begin = begin
        self._end = end

    def begin(self) -> None:
        self._begin()

    def end(self) -> None:
        self._end()


Maker = Callable[[random.Random], Fault]
"""Makes one fault of a kind, with a random node and duration."""


def long_or_short(chance: random.Random, longest: float) -> float:
    """Seconds: below the lease, around it, or long after it."""
    ranges = ((0.1, LEASE_SECONDS / 2), (LEASE_SECONDS * 0.8, LEASE_SECONDS * 1.3), (LEASE_SECONDS * 1.3, longest))
    low, high = chance.choice(ranges)
    return min(longest, chance.uniform(low, max(low, high)))


def of_processes(nodes: list[Node], longest: float) -> dict[str, Maker]:
    """The faults of nodes' processes. ``longest``: the seconds of the longest freeze."""

    def node(chance: random.Random) -> Node:
        return chance.choice(nodes)

    return {
        "freeze node": lambda chance: Freeze(node(chance), long_or_short(chance, longest)),
        "freeze gateway": lambda chance: Freeze(node(chance), long_or_short(chance, longest), "gateway"),
        "freeze authority": lambda chance: Freeze(node(chance), long_or_short(chance, longest), "authority"),
        "kill gateway": lambda chance: Kill(node(chance), "gateway"),
        "kill authority": lambda chance: Kill(node(chance), "authority"),
        "kill node": lambda chance: Crash(node(chance), chance.uniform(0.0, LEASE_SECONDS * 1.5)),
        "stop node": lambda chance: Restart(node(chance), chance.uniform(1.0, LEASE_SECONDS * 1.5)),
    }


def of_links(nodes: list[Node], hosts: list[Host], longest: float) -> dict[str, Maker]:
    def made(how: Callable[[Host], None]) -> Maker:
        def make(chance: random.Random) -> Fault:
            place = chance.randrange(len(nodes))
            return Link(nodes[place], hosts[place], how, long_or_short(chance, longest))

        return make

    return {f"link {how.__name__}": made(how) for how in (Host.cut, Host.unplug, Host.mute, Host.deafen)}


def of_proxies(nodes: list[Node], proxies: dict[int, FaultyProxy], longest: float) -> dict[str, Maker]:
    """``proxies``: by the number of the node that is behind it."""

    def made(command: str) -> Maker:
        def make(chance: random.Random) -> Fault:
            number = chance.choice(sorted(proxies))
            return Proxied(nodes[number], proxies[number], command, long_or_short(chance, longest))

        return make

    def late(chance: random.Random) -> Fault:
        number = chance.choice(sorted(proxies))
        hold = chance.uniform(0.5, 0.95) * LEASE_SECONDS / 2
        return LateReply(nodes[number], proxies[number], hold, LEASE_SECONDS * 1.5)

    commands = ("cut", "drop", "stall up", "stall down", "notify off", "doubt on", "lose on", "slow 60")
    return {**{f"proxy {each}": made(each) for each in commands}, "proxy late reply": late} if proxies else {}
