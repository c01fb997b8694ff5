"""The registry of connection pools: one for each upstream of the configuration, replaced when that is reloaded.

A reload has two steps. ``prepare`` does all that can fail and changes nothing. Then ``replace`` takes the prepared
pools into use, or ``discard`` closes them.
"""

from __future__ import annotations

from collections.abc import Mapping

from proxy.gateway.upstream.pool import Receiver, UpstreamPool
from proxy.settings.sections.upstreams import Upstream as UpstreamSettings


class UpstreamSet:
    """The connection pools of a worker, by the names of their upstreams. ``receiver`` gets what arrives on them."""

    def __init__(self, upstreams: Mapping[str, UpstreamSettings], receiver: Receiver) -> None:
        self._receiver = receiver
        self._by_name = {name: UpstreamPool(name, settings, receiver) for name, settings in upstreams.items()}

    def pool(self, name: str) -> UpstreamPool:
        """The pool of this upstream. Raises KeyError for a name that the configuration does not define."""
        return self._by_name[name]

    @property
    def pools(self) -> tuple[UpstreamPool, ...]:
        """All pools in use, in the order of the configuration."""
        return tuple(self._by_name.values())

    def prepare(self, upstreams: Mapping[str, UpstreamSettings]) -> dict[str, UpstreamPool]:
        """The pools for other settings: the present one where its settings are the same, else a new one.

        Raises OSError and ssl.SSLError for certificates that cannot be loaded.
        """
        prepared: dict[str, UpstreamPool] = {}
        for name, settings in upstreams.items():
            present = self._by_name.get(name)
            # The content of certificate files may have changed under the same names.
            without_files = all(server.scheme != "https" for server in settings.servers)
            if present is not None and present.settings == settings and without_files:
                prepared[name] = present
            else:
                prepared[name] = UpstreamPool(name, settings, self._receiver)
        return prepared

    def discard(self, prepared: Mapping[str, UpstreamPool]) -> None:
        """Close prepared pools that will not be used, except those in use already."""
        in_use = self._by_name.values()
        for pool in prepared.values():
            if pool not in in_use:
                pool.close()

    def replace(self, prepared: dict[str, UpstreamPool]) -> None:
        """Use these pools from now on. A pool that is left out closes each connection after its present exchange."""
        before, self._by_name = self._by_name, prepared
        kept = prepared.values()
        for pool in before.values():
            if pool not in kept:
                pool.retire()

    def sweep(self, now: float) -> None:
        """Close connections that have been idle for too long; ``now`` in monotonic seconds."""
        for pool in self._by_name.values():
            pool.sweep(now)

    def close(self) -> None:
        """Close all idle connections."""
        for pool in self._by_name.values():
            pool.close()
