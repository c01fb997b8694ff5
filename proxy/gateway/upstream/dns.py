"""DNS: resolves the names in ``servers`` periodically and independently of requests, which never wait for it.

Rules of this module:
1. A name keeps the addresses of its last successful lookup until another one succeeds.
2. Each name has one lookup at a time. Lookups run in daemon threads, so that a resolver that hangs delays nothing, not
   even the end of the process.
3. The system's resolver does not report a lifetime (TTL), so the operator sets one (``resolve_interval``).
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol

from proxy.gateway.upstream.pool import UpstreamPool
from proxy.observe import defects
from proxy.observe.logs import Logger

_SHORTEST_PAUSE_SECONDS: Final = 1.0
_MOST_DOUBLINGS: Final = 16
_MOST_ADDRESSES: Final = 64
"""Addresses of one name that are used at most; an answer of thousands is a mistake or an attack."""
_THREADS: Final = 16
"""Lookups that one resolver runs at once; others wait."""
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


class DnsResolver(Protocol):
    """Resolves names to addresses."""

    async def resolve(self, host: str) -> Sequence[str]:
        """The IP addresses of ``host``, best first, at least one. Raises OSError if the lookup fails."""
        ...


class SystemResolver:
    """The system's resolver: the hosts file, DNS, and what else is configured (getaddrinfo, RFC 3493)."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_THREADS)

    async def resolve(self, host: str) -> Sequence[str]:
        """The addresses from the system. Raises OSError if the lookup fails."""
        async with self._turns:
            return await _ask(host)


async def _ask(host: str) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Sequence[str]] = loop.create_future()

    def deliver(found: Sequence[str] | OSError) -> None:
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def ask() -> None:
        found: Sequence[str] | OSError
        try:
            found = _addresses(host)
        except OSError as error:
            found = error
        except UnicodeError:
            found = OSError("it is not a valid host name")
        # The loop may have been closed before a slow lookup ends.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(deliver, found)

    try:
        # Not the loop's thread pool: asyncio waits for it at the end, and libuv's has four threads for everything.
        threading.Thread(target=ask, name="resolve", daemon=True).start()
    except RuntimeError:
        raise OSError("no thread can be started for the lookup") from None
    return await answer


def _addresses(host: str) -> Sequence[str]:
    found: list[str] = []
    for family, _, _, _, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
        if family in _FAMILIES:
            found.append(str(address[0]))
    if not found:
        raise OSError("it has no IP address")
    return found


class TableResolver:
    """Resolves names from ``table``, which may change at any time; a lookup of any other name fails."""

    def __init__(self, table: Mapping[str, Sequence[str]]) -> None:
        self._table = table

    async def resolve(self, host: str) -> Sequence[str]:
        """The addresses from the table. Raises OSError for an unknown name."""
        found = self._table.get(host)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found


class _Name:
    """One name: its addresses, its lookup state, and every place in the settings that uses it."""

    __slots__ = ("addresses", "due", "failures", "host", "interval", "places", "task")

    def __init__(self, host: str) -> None:
        self.host = host
        self.places: list[tuple[UpstreamPool, int]] = []
        self.interval = float("inf")
        self.addresses: tuple[str, ...] = ()
        self.failures = 0
        self.due = 0.0
        self.task: asyncio.Task[None] | None = None


class Lookups:
    """Keeps the servers of upstreams current: one server for each address of each name."""

    def __init__(self, resolver: DnsResolver, log: Logger) -> None:
        self._names: dict[str, _Name] = {}
        self._resolver = resolver
        self._log = log

    def follow(self, upstreams: Iterable[UpstreamPool]) -> None:
        """Resolve the names in these upstreams from now on. Addresses that are already known are used at once."""
        before, self._names = self._names, {}
        for upstream in upstreams:
            for place, address in enumerate(upstream.settings.servers):
                if not address.named:
                    continue
                name = self._names.get(address.host)
                if name is None:
                    name = before.pop(address.host) if address.host in before else _Name(address.host)
                    self._names[address.host] = name
                    name.places, name.interval = [], upstream.settings.resolve_interval
                name.places.append((upstream, place))
                name.interval = min(name.interval, upstream.settings.resolve_interval)
                if name.addresses:
                    upstream.resolved(place, name.addresses)
        for name in before.values():
            if name.task is not None:
                name.task.cancel()

    def sweep(self, now: float) -> None:
        """Start a lookup of every name that is due; ``now`` in monotonic seconds."""
        for name in self._names.values():
            if name.task is None and now >= name.due:
                name.task = task = asyncio.create_task(self._look_up(name), name="look up")
                task.add_done_callback(defects.noted)

    async def answered(self, seconds: float) -> None:
        """Return when every name without an address has been looked up once, or after ``seconds``."""
        self.sweep(time.monotonic())
        unknown = [name.task for name in self._names.values() if name.task is not None and not name.addresses]
        if unknown:
            await asyncio.wait(unknown, timeout=seconds)

    async def close(self) -> None:
        """Cancel all lookups."""
        tasks = [name.task for name in self._names.values() if name.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_up(self, name: _Name) -> None:
        pause = name.interval
        try:
            found = await self._resolver.resolve(name.host)
            self._take(name, tuple(dict.fromkeys(found))[:_MOST_ADDRESSES])
        except OSError as error:
            # Sooner than after a success, because there may be no address yet, but with exponential back-off.
            pause = min(pause, _SHORTEST_PAUSE_SECONDS * 2.0 ** min(name.failures, _MOST_DOUBLINGS))
            self._failed(name, error)
        finally:
            # Jitter, so that workers and names do not look up at the same time.
            name.due = time.monotonic() + pause * random.uniform(0.9, 1.1)  # noqa: S311 - no secret
            name.task = None

    def _take(self, name: _Name, addresses: tuple[str, ...]) -> None:
        before, name.addresses = name.addresses, addresses
        failures, name.failures = name.failures, 0
        # A name server that rotates its answers (round robin) has changed nothing.
        if set(addresses) == set(before):
            if failures:
                self._log.info("upstream name is resolved again", host=name.host)
            return
        for upstream, place in name.places:
            upstream.resolved(place, addresses)
        if before or failures:
            self._log.info("upstream name has other addresses", host=name.host, addresses=list(addresses))

    def _failed(self, name: _Name, error: OSError) -> None:
        name.failures += 1
        if name.failures == 1:
            why = error.strerror or str(error)
            self._log.warning("upstream name is not resolved", host=name.host, why=why, kept=len(name.addresses))
