"""The grant cache: stores the grants of a worker, finds them by credential or prefix, and removes changed ones.

Rules of this module:
1. ``applied`` is the number of the last change that the cache has absorbed. A hit counts only while it equals the epoch
   on the shared page; the comparison is made where the decision is made.
2. An entry leaves all three maps at once: by prefix, by credential, and the index of dependency keys.
3. The first-level map is keyed by a keyed digest of the credential, never by the credential.
4. Refused and unknown prefixes have their own bounded map and cannot evict a grant.
5. The identity headers of a principal are derived from the grant that is kept beside them, and from nothing else.

Data flow: a lookup's answer enters by ``store`` or ``store_refused``; a verified credential enters by ``remember``;
numbered changes enter by ``apply`` in their order, or ``reset`` when some were missed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from sys import intern
from typing import TYPE_CHECKING, Final

from proxy.core.decision import reached
from proxy.core.identity import IdentityOutputs
from proxy.core.model import Grant, OrgGrant, RefusedGrant, by_org

if TYPE_CHECKING:
    from proxy.gateway.exchange import Exchange

_LATELY: Final = 1 << 16
"""Most prefixes that are remembered as good until a change."""
_FORGOTTEN_AT_ONCE: Final = 1000
"""Refusals that one sweep removes at most: the remains of a flood must not delay a request."""
_CREDENTIALS_PER_GRANT: Final = 4
"""Credentials of one token that are remembered (Bearer, X-API-Key, Basic with a user name or two)."""


class OtherLines:
    """The identity lines of a grant that differ from its usual ones, by upstream and by organisation.

    A token that reaches several organisations has another role in each. An upstream may have outputs of its own. These
    lines are built when they are first needed, because most grants need few of them before they change.
    """

    __slots__ = ("_grant", "_made", "_outputs")

    def __init__(self, grant: Grant, outputs: IdentityOutputs, lines: bytes) -> None:
        self._grant = grant
        self._outputs = outputs
        self._made: dict[str, bytes] = {"": lines}

    def of(self, upstream: str, org: str | None) -> bytes:
        """The lines for ``upstream`` ("": the global outputs) and the organisation (id or name) that a route names."""
        grant = self._grant
        there = None if grant.orgs is None else reached(org, grant)
        # Names of upstreams and identifiers of organisations have no "/".
        key = upstream if there is None else upstream + "/" + there.org_id
        made = self._made.get(key)
        if made is None:
            outputs = self._outputs.of(upstream)
            self._made[key] = made = outputs.lines(grant, None if there is None else there.org_id)
        return made


class CacheEntry:
    """A grant in the cache, with its identity header lines and the digests of its verified credentials.

    ``uses`` is the number of requests that have yet to be reported (``usage_reporter``), the last of them at
    ``used_ns`` (CLOCK_BOOTTIME) from ``peer``. Where ``org_lines`` is not None it gives the lines for the organisation
    that the request touches, instead of ``lines``. ``upstream_lines``, None unless some upstream has outputs of its
    own, gives the lines for such an upstream.
    """

    __slots__ = (
        "changed",
        "credentials",
        "grant",
        "lines",
        "live",
        "org_lines",
        "peer",
        "upstream_lines",
        "used",
        "used_ns",
        "uses",
    )

    def __init__(
        self,
        grant: Grant,
        lines: bytes,
        org_lines: OtherLines | None = None,
        upstream_lines: OtherLines | None = None,
    ) -> None:
        self.grant = grant
        self.lines = lines
        self.org_lines = org_lines
        self.upstream_lines = upstream_lines
        self.used = True
        self.credentials: tuple[bytes, ...] = ()
        self.changed = False
        self.live: set[Exchange] | None = None
        self.uses = 0
        self.used_ns = 0
        self.peer = ""


class GrantCache:
    """Grants by public prefix, bounded to ``capacity``, evicted by second chance (an approximation of LRU).

    ``credential_key`` (32 random bytes of this process) keys the digests of the first-level map. ``prefix_heads`` are
    the beginnings of all public prefixes ("acme_pat", "acme_key"), with which the change of a token finds its entry
    without an index. ``on_change`` is called with an entry that a *change* removed, if live exchanges depend on it.
    """

    def __init__(
        self,
        *,
        capacity: int,
        absent_capacity: int,
        absent_seconds: float,
        credential_key: bytes,
        prefix_heads: Iterable[str],
    ) -> None:
        self.applied = -1
        self.entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self.by_credential: dict[bytes, CacheEntry] = {}
        self._dependents: dict[str, str | set[str]] = {}
        self._absent: OrderedDict[str, tuple[float, RefusedGrant]] = OrderedDict()
        self._capacity = capacity
        self._lately: OrderedDict[str, None] = OrderedDict()
        self._absent_capacity = absent_capacity
        self._absent_seconds = absent_seconds
        # A key would take a block in front of every credential, and twice the work. As salt and personalisation the
        # same 32 secret bytes are part of the initial state (BLAKE2, section 2.8): a credential is one block.
        self._hasher = hashlib.blake2b(digest_size=16, salt=credential_key[:16], person=credential_key[16:])
        self._prefix_heads = tuple(prefix_heads)
        self.on_change: Callable[[CacheEntry], None] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def resize(self, *, capacity: int, absent_capacity: int) -> None:
        """Change how many grants and refused prefixes the cache holds at most."""
        self._capacity = capacity
        self._absent_capacity = absent_capacity
        # A grant with live exchanges stays, so only one pass is tried.
        for _ in range(len(self.entries) - capacity):
            self._evict_one()

    @property
    def absent(self) -> int:
        """Number of refused prefixes held."""
        return len(self._absent)

    def credential_digest(self, credential: bytes) -> bytes:
        """The key of a presented credential in the first-level map: keyed BLAKE2b (RFC 7693), 16 bytes."""
        hasher = self._hasher.copy()
        hasher.update(credential)
        return hasher.digest()

    def store(self, grant: Grant, outputs: IdentityOutputs) -> CacheEntry:
        """Keep ``grant``, with the lines of these identity outputs, and return its entry.

        It replaces an older grant of the same prefix.
        """
        prefix = grant.prefix
        if prefix in self.entries:
            self.evict(prefix)
        if len(self.entries) >= self._capacity:
            self._evict_one()
        self._absent.pop(prefix, None)
        self._lately.pop(prefix, None)
        lean = _lean(grant)
        lines = outputs.lines(grant)
        org_lines = upstream_lines = None
        if lean.orgs is not None or outputs.upstreams:
            others = OtherLines(replace(grant, orgs=lean.orgs), outputs, lines)
            org_lines = None if lean.orgs is None else others
            upstream_lines = others if outputs.upstreams else None
        entry = CacheEntry(lean, lines, org_lines, upstream_lines)
        self.entries[prefix] = entry
        for key in entry.grant.depends:
            self._index(key, prefix)
        return entry

    def remember(self, entry: CacheEntry, credential: bytes) -> None:
        """Let the digest of a verified credential find ``entry`` without further checks."""
        if self.entries.get(entry.grant.prefix) is not entry:
            return
        known = entry.credentials
        if credential in known:
            return
        if len(known) >= _CREDENTIALS_PER_GRANT:
            del self.by_credential[known[0]]
            known = known[1:]
        entry.credentials = (*known, credential)
        self.by_credential[credential] = entry

    def good_lately(self, prefix: str) -> bool:
        """Whether ``prefix`` had a grant that a change removed, so that its lookup has priority over unknown ones."""
        return prefix in self._lately

    def store_refused(self, refused: RefusedGrant, now: float) -> None:
        """Keep a refusal for its prefix until ``absent_seconds`` after ``now`` (monotonic seconds)."""
        absent = self._absent
        absent.pop(refused.prefix, None)
        self._lately.pop(refused.prefix, None)
        while len(absent) >= self._absent_capacity:
            absent.popitem(last=False)
        absent[refused.prefix] = (now + self._absent_seconds, refused)

    def refused(self, prefix: str, now: float) -> RefusedGrant | None:
        """The refusal held for ``prefix``, unless it has expired at ``now`` (monotonic seconds)."""
        held = self._absent.get(prefix)
        if held is None:
            return None
        if held[0] <= now:
            del self._absent[prefix]
            return None
        return held[1]

    def sweep(self, now: float) -> None:
        """Forget the oldest refusals that have expired at ``now`` (monotonic seconds), a bounded number per call."""
        absent = self._absent
        for _ in range(_FORGOTTEN_AT_ONCE):
            if not absent:
                return
            prefix = next(iter(absent))
            if absent[prefix][0] > now:
                return
            del absent[prefix]

    def apply(self, keys: Iterable[str], epoch: int) -> None:
        """Apply the changes up to number ``epoch``: remove every grant that depends on one of ``keys``."""
        wide = False
        for key in keys:
            if key.startswith("token:"):
                self._apply_token(key[6:])
                continue
            wide = True
            dependents = self._dependents.get(key)
            if dependents is None:
                continue
            for prefix in (dependents,) if isinstance(dependents, str) else tuple(dependents):
                self._remove(prefix)
        if wide:
            # A refusal may depend on anything that changed; there are few and they are quickly looked up again.
            self._absent.clear()
        self.applied = max(self.applied, epoch)

    def reset(self, epoch: int) -> None:
        """Drop everything, because changes up to ``epoch`` were missed or the authority is another one."""
        entries = list(self.entries.values())
        self.entries.clear()
        self.by_credential.clear()
        self._dependents.clear()
        self._absent.clear()
        self.applied = epoch
        for entry in entries:
            self._changed(entry)

    def evict(self, prefix: str) -> CacheEntry | None:
        """Remove the grant of ``prefix``, if held, from every map."""
        entry = self.entries.pop(prefix, None)
        if entry is None:
            return None
        for credential in entry.credentials:
            self.by_credential.pop(credential, None)
        entry.credentials = ()
        for key in entry.grant.depends:
            self._unindex(key, prefix)
        return entry

    def _apply_token(self, token_id: str) -> None:
        for head in self._prefix_heads:
            prefix = f"{head}_{token_id}"
            self._absent.pop(prefix, None)
            self._remove(prefix)

    def _remove(self, prefix: str) -> None:
        entry = self.evict(prefix)
        if entry is not None:
            self._changed(entry)

    def _changed(self, entry: CacheEntry) -> None:
        entry.changed = True
        self._lately[entry.grant.prefix] = None
        if len(self._lately) > _LATELY:
            self._lately.popitem(last=False)
        if entry.live is not None and self.on_change is not None:
            self.on_change(entry)

    def _evict_one(self) -> None:
        for _ in range(2 * len(self.entries)):
            prefix, entry = next(iter(self.entries.items()))
            # A change must find the live exchanges of a grant, so such a grant stays, even above the capacity.
            if not entry.used and entry.live is None:
                self.evict(prefix)
                return
            entry.used = False
            self.entries.move_to_end(prefix)

    def _index(self, key: str, prefix: str) -> None:
        held = self._dependents.get(key)
        if held is None:
            self._dependents[key] = prefix
        elif isinstance(held, str):
            if held != prefix:
                self._dependents[key] = {held, prefix}
        else:
            held.add(prefix)

    def _unindex(self, key: str, prefix: str) -> None:
        held = self._dependents.get(key)
        if held is None:
            return
        if isinstance(held, str):
            if held == prefix:
                del self._dependents[key]
        else:
            held.discard(prefix)
            if not held:
                del self._dependents[key]


def _lean(grant: Grant) -> Grant:
    """``grant`` without the fields that only the identity lines need, because a worker may hold many grants.

    The token's own key is left out of ``depends``, because a token's change finds its entry by the prefix. Strings that
    many grants have in common are interned.
    """
    return replace(
        grant,
        token_id="",
        token_name="",
        user_id="",
        email="",
        org_id=intern(grant.org_id),
        org_name=intern(grant.org_name),
        role=intern(grant.role),
        depends=tuple(
            intern(key) if key.startswith(("role:", "org:")) else key
            for key in grant.depends
            if not key.startswith("token:")
        ),
        orgs=None if grant.orgs is None else _lean_orgs(grant.orgs),
    )


def _lean_orgs(orgs: Mapping[str, OrgGrant]) -> dict[str, OrgGrant]:
    # Each organisation is in the mapping twice, under its id and its name.
    return by_org(
        [
            replace(org, org_id=intern(org.org_id), org_name=intern(org.org_name), role=intern(org.role))
            for key, org in orgs.items()
            if key == org.org_id
        ]
    )
