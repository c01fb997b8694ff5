"""The content of the cache after a change, a reset and a late change, read from the cache itself."""

from __future__ import annotations

import gc

from proxy.core.kinds import Kind
from proxy.core.model import RefusedGrant
from proxy.core.reasons import Reason
from proxy.gateway.grants.cache import CacheEntry, GrantCache
from tests.unit.gateway.kit import IDENTITY, TOKENS, make_cache, make_grant


def filled(cache: GrantCache, count: int = 3) -> list[CacheEntry]:
    entries = [cache.store(make_grant(TOKENS.mint(Kind.PAT)), IDENTITY) for _ in range(count)]
    for number, entry in enumerate(entries):
        cache.remember(entry, cache.credential_digest(b"%d" % number))
    return entries


def kept_by(cache: GrantCache) -> set[object]:
    """The keys of every dictionary of the cache."""
    found = [each for each in gc.get_referents(cache) if type(each) is dict]
    # Where the cache is not compiled, one of them is that of its attributes.
    found += [each for one in found for each in one.values() if type(each) is dict]
    return {key for each in found for key in each}


def test_a_reset_drops_every_grant_and_reports_those_with_live_exchanges() -> None:
    cache, changed = make_cache(), list[CacheEntry]()
    cache.on_change = changed.append
    entries = filled(cache)
    entries[0].live = set()
    cache.store_refused(RefusedGrant(prefix="acme_pat_0", reason=Reason.TOKEN_UNKNOWN, depends=()), 0.0)
    cache.apply(["user:another"], 9)
    cache.store_refused(RefusedGrant(prefix="acme_pat_0", reason=Reason.TOKEN_UNKNOWN, depends=()), 0.0)
    cache.reset(4)
    assert (len(cache), len(cache.by_credential), cache.absent) == (0, 0, 0)
    assert cache.applied == 4, "the authority is another one, and counts from its own number"
    assert all(entry.changed for entry in entries)
    assert changed == entries[:1]
    assert not kept_by(cache) & {key for entry in entries for key in entry.grant.depends}
    assert all(cache.good_lately(entry.grant.prefix) for entry in entries)


def test_a_late_change_removes_its_grants_and_does_not_lower_the_epoch() -> None:
    cache = make_cache()
    (entry,) = filled(cache, 1)
    cache.apply(["user:another"], 7)
    cache.apply(["user:usr1"], 3)
    assert cache.applied == 7
    assert entry.grant.prefix not in cache.entries
    cache.apply([], 8)
    assert cache.applied == 8


def test_a_wide_change_drops_all_refusals_and_a_change_of_a_token_only_its_own() -> None:
    cache = make_cache()
    one, other = (TOKENS.mint(Kind.PAT) for _ in range(2))
    for minted in (one, other):
        cache.store_refused(RefusedGrant(prefix=minted.prefix, reason=Reason.TOKEN_REVOKED, depends=()), 0.0)
    cache.apply([f"token:{one.token_id}"], 1)
    assert cache.refused(one.prefix, 0.0) is None
    assert cache.refused(other.prefix, 0.0) is not None
    cache.apply(["role:unheard-of"], 2)
    assert cache.absent == 0


def test_a_refusal_is_held_until_it_expires() -> None:
    cache = make_cache()
    cache.store_refused(RefusedGrant(prefix="acme_pat_0", reason=Reason.TOKEN_UNKNOWN, depends=()), 100.0)
    assert cache.refused("acme_pat_0", 129.9) is not None
    assert cache.refused("acme_pat_0", 130.0) is None
    assert cache.absent == 0, "it is forgotten, not only left unsaid"
