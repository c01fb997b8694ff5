"""Campaigns: send rounds of targets through one gateway to every server, and report minimised findings.

A round ends when each server's file has the number of every request that the server answered. The number of a refused
request in that file is also a finding, so the servers themselves show whether a refused request reached them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxy.settings.compile import route_table
from proxy.settings.load import load
from tests.differential.client import Lane
from tests.differential.judge import NARROW_SCOPES, UNCOUNTED, Answer, Case, Finding, Judge, numbered, routes
from tests.differential.targets import atoms
from tests.support.gateway import Patgate
from tests.support.pathservers import PathServer, path_servers
from tests.support.process import wait_until

LANES = 2
ROUND = 5000
USER = "wide@example.org"

#: The entries that servers write for a request without a number, and for the number ``UNCOUNTED``.
IGNORED = frozenset((b"-", b"0"))


class Campaign:
    """Sends cases and checks the responses. ``counts`` has the number of requests by server and area or refusal.

    ``port`` is the gateway's; ``tokens`` are the wide token (under True) and the narrow one; ``next_number`` is the
    number of the next case.
    """

    def __init__(self, *, port: int, servers: Sequence[PathServer], judge: Judge, tokens: Mapping[bool, bytes]) -> None:
        self.port = port
        self.servers = servers
        self.judge = judge
        self.tokens = tokens
        self.counts: Counter[tuple[str, str]] = Counter()
        self.targets = 0
        self.next_number = 1
        self._offsets = {server.name: server.lines_since(0)[1] for server in servers}
        self._answered: dict[str, set[int]] = {server.name: set() for server in servers}
        self._lanes = [[self._lane(server) for _ in range(LANES)] for server in servers]

    def close(self) -> None:
        for lanes in self._lanes:
            for lane in lanes:
                lane.close()

    def run(self, targets: Iterable[bytes]) -> list[Finding]:
        """Send every target to every server."""
        cases = numbered(targets, self.next_number)
        self.next_number += len(cases)
        self.targets += len(cases)
        shares = [cases[start::LANES] for start in range(LANES)]
        with ThreadPoolExecutor(len(self.servers) * LANES, thread_name_prefix="lane") as pool:
            sent = [
                (server, share, pool.submit(lane.exchange, share))
                for server, lanes in zip(self.servers, self._lanes, strict=True)
                for lane, share in zip(lanes, shares, strict=True)
            ]
        findings = []
        answered: dict[str, set[int]] = {server.name: set() for server in self.servers}
        read: dict[str, set[int]] = {server.name: set() for server in self.servers}
        for server, share, future in sent:
            for case, answer in zip(share, future.result(), strict=True):
                self.counts[server.name, _outcome(answer)] += 1
                if not answer.by_gateway:
                    answered[server.name].add(case.number)
                if answer.view is not None:
                    read[server.name].add(case.number)
                problem = self.judge.judge(server, case, answer)
                if problem is not None:
                    findings.append(Finding(server=server.name, case=case, problem=problem))
        by_number = {case.number: case for case in cases}
        # Every server writes this one after all earlier requests.
        last = Case(number=self.next_number, target=b"/public/")
        self.next_number += 1
        for server, lanes in zip(self.servers, self._lanes, strict=True):
            lanes[0].exchange([last])
            answered[server.name].add(last.number)
            read[server.name].add(last.number)
            findings += self._unexpected(server, answered[server.name], read[server.name], by_number)
        self._answered = answered
        return findings

    def one(self, server: PathServer, case: Case) -> str | None:
        """The problem of one case at one server, or None; sent on a separate connection, outside every round."""
        case = replace(case, number=UNCOUNTED)
        lane = self._lane(server)
        try:
            [answer] = lane.exchange([case])
        finally:
            lane.close()
        return self.judge.judge(server, case, answer)

    def minimised(self, finding: Finding, attempts: int = 400) -> Finding:
        """The same disagreement with the smallest target that still shows it."""
        [server] = [server for server in self.servers if server.name == finding.server]
        size = max(1, len(atoms(finding.case.target)) // 2)
        while size and attempts:
            parts = atoms(finding.case.target)
            shorter = [b"".join(parts[:at] + parts[at + size :]) for at in range(0, len(parts), size)]
            for target in filter(None, shorter):
                attempts -= 1
                case = replace(finding.case, target=target)
                problem = self.one(server, case)
                if problem is not None:
                    finding = replace(finding, case=case, problem=problem)
                    break
                if not attempts:
                    break
            else:
                size //= 2
        return finding

    def report(self, findings: Sequence[Finding], limit: int = 5) -> str:
        """The first findings, minimised, each with its original target."""
        lines = [f"{len(findings)} disagreements"]
        for finding in findings[:limit]:
            lines.append(str(self.minimised(finding)))
            lines.append(f"    found as {finding.case.target!r}")
        return "\n".join(lines)

    def figures(self) -> str:
        """The number of targets, and their results at each server."""
        lines = [f"{self.targets} targets to each of {len(self.servers)} servers"]
        for server in self.servers:
            outcomes = sorted((what, count) for (name, what), count in self.counts.items() if name == server.name)
            lines.append(f"  {server.name:7} " + ", ".join(f"{what} {count}" for what, count in outcomes))
        return "\n".join(lines)

    def _lane(self, server: PathServer) -> Lane:
        return Lane(self.port, server, tokens=self.tokens)

    def _unexpected(
        self, server: PathServer, answered: set[int], read: set[int], cases: dict[int, Case]
    ) -> Iterator[Finding]:
        """Requests that reached a server although the gateway refused them.

        The server has ``answered``; it also writes the numbers of those it parsed (``read``), for which this waits.
        """
        seen: set[int] = set()

        def complete() -> bool:
            lines, self._offsets[server.name] = server.lines_since(self._offsets[server.name])
            seen.update(int(line) for line in lines if line not in IGNORED)
            return read <= seen

        wait_until(complete, f"{server.name} to write its requests")
        # A line of the last round may be late.
        for number in seen - answered - self._answered[server.name]:
            case = cases.get(number, Case(number=number, target=b"a target of the last round"))
            yield Finding(server=server.name, case=case, problem="refused, and yet the server was given it")


def _outcome(answer: Answer) -> str:
    if answer.view is not None:
        return answer.view.area
    return f"{'refused' if answer.by_gateway else 'answered'} {answer.status}"


@contextmanager
def campaign(directory: Path) -> Iterator[Campaign]:
    """The four servers, a gateway with two workers in front of them, and its two tokens."""
    with path_servers(directory / "servers") as servers:
        config: dict[str, Any] = {
            "upstreams": {server.name: {"servers": [server.url]} for server in servers},
            "roles": {"wide": ["*:*"]},
            "routes": [route for server in servers for route in routes(server)],
        }
        with Patgate(directory / "gateway", config) as gateway:
            gateway.add_user(USER, "wide")
            wide = gateway.token(USER, name="wide")
            narrow = gateway.token(USER, name="narrow", scopes=NARROW_SCOPES)
            running = Campaign(
                port=gateway.port,
                servers=servers,
                judge=Judge(route_table(load(gateway.config_file, {}))),
                tokens={True: wide.value.encode("ascii"), False: narrow.value.encode("ascii")},
            )
            try:
                yield running
            finally:
                running.close()
