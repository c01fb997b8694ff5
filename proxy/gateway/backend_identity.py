"""The identity that a request passes on: which of the precomputed field lines go to the backend or to the ingress.

Rules of this module:
1. Both entries, the proxy and forward auth, take the lines from here. ``core.identity.IdentityOutputs`` makes them.
2. Nothing is built for a request: the cache entry of the grant holds its lines, and those for unknown callers are
   constants.
3. Outputs are chosen for each upstream when the configuration is read. A deployment whose upstreams all use the global
   ones has ``BackendIdentity``, which does not look at the upstream.
4. Lines name a principal only where the request was authenticated; organisation and role are those of the organisation
   that the request touches.
"""

from __future__ import annotations

from typing import Final

from proxy.core.identity import IdentityOutputs
from proxy.core.model import Access
from proxy.gateway.exchange import Exchange

# Looking a member up in its enumeration costs more than the comparison with it.
_TOKEN: Final = Access.TOKEN


class BackendIdentity:
    """Chooses the identity lines of a request, where all upstreams get the same outputs.

    Routes with ``access: token`` always send every header, empty for an unknown caller; other routes send them, empty,
    only if ``on_open_routes``.
    """

    def __init__(self, outputs: IdentityOutputs, *, on_open_routes: bool) -> None:
        self._anonymous = outputs.anonymous
        self._on_open_routes = self._anonymous if on_open_routes else b""

    def lines(self, x: Exchange) -> bytes:
        """The field lines for ``x``, which is allowed, each ended by CRLF."""
        match = x.match
        assert match is not None
        entry = x.entry
        if entry is None:
            return self._anonymous if match.route.access is _TOKEN else self._on_open_routes
        org_lines = entry.org_lines
        return entry.lines if org_lines is None else org_lines.of("", match.org)


class UpstreamIdentity(BackendIdentity):
    """Chooses the identity lines of a request, where some upstreams have outputs of their own.

    With ``on_open_routes`` the lines also include, empty, the headers that only other upstreams get.
    """

    def __init__(self, outputs: IdentityOutputs, *, on_open_routes: bool) -> None:
        super().__init__(outputs, on_open_routes=on_open_routes)
        self._others = outputs.absent("") if on_open_routes else b""
        self._own = {
            name: (own.anonymous, outputs.absent(name) if on_open_routes else b"")
            for name, own in outputs.upstreams.items()
        }
        self._on_every_route = on_open_routes

    def lines(self, x: Exchange) -> bytes:
        """The field lines for ``x``, which is allowed, each ended by CRLF."""
        match = x.match
        assert match is not None
        route = match.route
        own = self._own.get(route.upstream)
        if own is None:
            return super().lines(x) + self._others
        anonymous, others = own
        entry = x.entry
        if entry is None:
            return anonymous + others if self._on_every_route or route.access is _TOKEN else b""
        upstream_lines = entry.upstream_lines
        # An entry from before a reload is never decided upon: the cache is reset when outputs change.
        assert upstream_lines is not None
        return upstream_lines.of(route.upstream, match.org) + others


def backend_identity(outputs: IdentityOutputs, *, on_open_routes: bool) -> BackendIdentity:
    """The chooser for these outputs."""
    chosen = UpstreamIdentity if outputs.upstreams else BackendIdentity
    return chosen(outputs, on_open_routes=on_open_routes)
