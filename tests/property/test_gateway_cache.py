"""The grant cache against a naive model: no sequence of operations makes it return an entry that has changed."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.core.identity import PRESETS, IdentityHeaders, IdentityOutputs
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Grant, RefusedGrant
from proxy.core.permissions import PermissionSet
from proxy.core.reasons import Reason
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.cache import CacheEntry, GrantCache

CAPACITY = 5
ABSENT = 3
ABSENT_SECONDS = 10.0
IDENTITY = IdentityOutputs((IdentityHeaders(PRESETS["patgate"]),))
KINDS = [kind.value for kind in Kind]

ids = st.sampled_from([f"id{n}" for n in range(8)])
kinds = st.sampled_from(KINDS)
shared_keys = st.sampled_from(["user:u1", "user:u2", "role:r1", "role:r2", "org:o1", "member:o1/u1"])
RUNNING = Exchange(None, 0, b"running")

credentials = st.integers(0, 20).map(lambda n: b"credential %d" % n)


def make(kind: str, token_id: str, depends: frozenset[str]) -> Grant:
    return Grant(
        prefix=f"acme_{kind}_{token_id}",
        token_id=token_id,
        kind=Kind(kind),
        token_name="",
        digest=b"d" * 32,
        user_id="u",
        email="",
        org_id="",
        org_name="",
        reach=Reach.PERSONAL,
        role="r",
        permissions=PermissionSet.of(()),
        scopes=None,
        expires_at=None,
        depends=(f"token:{token_id}", *sorted(depends)),
    )


class CacheMachine(RuleBasedStateMachine):
    """``held`` has the entries that the cache may return; it may have dropped some, but must return no others."""

    def __init__(self) -> None:
        super().__init__()
        self.evicted: list[CacheEntry] = []
        self.cache = GrantCache(
            capacity=CAPACITY,
            absent_capacity=ABSENT,
            absent_seconds=ABSENT_SECONDS,
            credential_key=b"k" * 32,
            prefix_heads=[f"acme_{kind}" for kind in KINDS],
        )
        self.cache.on_change = self.evicted.append
        self.epoch = 0
        self.now = 0.0
        self.held: dict[str, CacheEntry] = {}
        self.depends: dict[str, frozenset[str]] = {}
        self.refusals: dict[str, tuple[float, RefusedGrant]] = {}
        self.credentials: dict[bytes, CacheEntry] = {}
        self.entries: list[CacheEntry] = []

    @rule(kind=kinds, token_id=ids, depends=st.frozensets(shared_keys, max_size=3))
    def store(self, kind: str, token_id: str, depends: frozenset[str]) -> None:
        grant = make(kind, token_id, depends)
        entry = self.cache.store(grant, IDENTITY)
        self.held[grant.prefix] = entry
        self.depends[grant.prefix] = frozenset(grant.depends)
        self.refusals.pop(grant.prefix, None)
        self.entries.append(entry)
        assert self.cache.entries[grant.prefix] is entry

    @precondition(lambda self: self.entries)
    @rule(back=st.integers(1, 10), credential=credentials)
    def remember(self, back: int, credential: bytes) -> None:
        """Remember a credential, possibly again, and also for an entry that was replaced or evicted meanwhile.

        ``back`` counts from the newest entry.
        """
        entry = self.entries[-min(back, len(self.entries))]
        known = self.credentials.get(credential)
        if known is not None and known.grant.prefix != entry.grant.prefix:
            return  # a credential belongs to one token
        before = dict(self.cache.by_credential)
        self.cache.remember(entry, credential)
        if self.cache.entries.get(entry.grant.prefix) is entry:
            self.credentials[credential] = entry
            assert self.cache.by_credential[credential] is entry
        else:
            # A newer entry for the credential is not replaced.
            assert self.cache.by_credential == before

    @rule(kind=kinds, token_id=ids)
    def store_refused(self, kind: str, token_id: str) -> None:
        refused = RefusedGrant(prefix=f"acme_{kind}_{token_id}", reason=Reason.TOKEN_UNKNOWN, depends=())
        self.cache.store_refused(refused, self.now)
        self.refusals[refused.prefix] = (self.now + ABSENT_SECONDS, refused)

    @rule(keys=st.lists(shared_keys | ids.map("token:{}".format), max_size=3))
    def apply(self, keys: list[str]) -> None:
        self.epoch += 1
        gone = [prefix for prefix in self.held if set(keys) & self.depends[prefix]]
        present = {prefix for prefix in gone if prefix in self.cache.entries}
        self.evicted.clear()
        before = dict(self.cache.entries)
        for entry in before.values():
            entry.live = {RUNNING}
        self.cache.apply(keys, self.epoch)
        assert {entry.grant.prefix for entry in self.evicted} == present
        assert {prefix for prefix, entry in before.items() if entry.changed} == present
        for entry in before.values():
            entry.live = None
        for prefix in gone:
            del self.held[prefix]
        changed = {f"acme_{kind}_{key[6:]}" for key in keys if key.startswith("token:") for kind in KINDS}
        wide = any(not key.startswith("token:") for key in keys)
        self.refusals = {p: held for p, held in self.refusals.items() if not wide and p not in changed}

    @rule(epoch=st.integers(0, 100))
    def reset(self, epoch: int) -> None:
        self.cache.reset(epoch)
        self.epoch = epoch
        self.held.clear()
        self.refusals.clear()
        assert self.empty()

    @rule(kind=kinds, token_id=ids)
    def evict(self, kind: str, token_id: str) -> None:
        prefix = f"acme_{kind}_{token_id}"
        self.cache.evict(prefix)
        self.held.pop(prefix, None)

    @rule(kind=kinds, token_id=ids)
    def use(self, kind: str, token_id: str) -> None:
        entry = self.cache.entries.get(f"acme_{kind}_{token_id}")
        if entry is not None:
            entry.used = True

    @rule(seconds=st.floats(0, 2 * ABSENT_SECONDS))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_found_that_may_not_be(self) -> None:
        for prefix, entry in self.cache.entries.items():
            assert self.held[prefix] is entry
        for credential, entry in self.cache.by_credential.items():
            assert self.held[entry.grant.prefix] is entry
            assert self.cache.entries[entry.grant.prefix] is entry
            assert self.credentials[credential] is entry

    @invariant()
    def refusals_are_found_until_they_age(self) -> None:
        for kind in KINDS:
            for n in range(8):
                prefix = f"acme_{kind}_id{n}"
                found = self.cache.refused(prefix, self.now)
                if found is not None:
                    until, refused = self.refusals[prefix]
                    assert found is refused
                    assert self.now < until

    @invariant()
    def the_bounds_hold(self) -> None:
        assert len(self.cache) <= CAPACITY
        assert self.cache.absent <= ABSENT
        assert len(self.cache.by_credential) <= 4 * len(self.cache)
        assert self.cache.applied in (self.epoch, -1)

    @invariant()
    def the_index_holds_what_the_entries_need_and_no_more(self) -> None:
        wanted: dict[str, set[str]] = {}
        for prefix in self.cache.entries:
            for key in self.depends[prefix]:
                if not key.startswith("token:"):
                    wanted.setdefault(key, set()).add(prefix)
        index = {key: {v} if isinstance(v, str) else set(v) for key, v in self.cache._dependents.items()}
        assert index == wanted

    def empty(self) -> bool:
        cache = self.cache
        return not (cache.entries or cache.by_credential or cache._dependents or cache._absent)

    def teardown(self) -> None:
        for prefix in list(self.cache.entries):
            self.cache.evict(prefix)
        assert not (self.cache.entries or self.cache.by_credential or self.cache._dependents)


CacheMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestCache = CacheMachine.TestCase


def test_a_credential_verified_for_a_grant_that_was_replaced_meanwhile_finds_the_one_that_replaced_it() -> None:
    machine = CacheMachine()
    steps: list[Callable[[], object]] = [
        lambda: machine.store("pat", "id1", frozenset()),
        lambda: machine.remember(1, b"credential 1"),
        lambda: machine.store("pat", "id1", frozenset()),
        lambda: machine.remember(1, b"credential 1"),
        lambda: machine.remember(2, b"credential 1"),
    ]
    for step in steps:
        step()
        machine.nothing_is_found_that_may_not_be()
    assert machine.cache.by_credential == {b"credential 1": machine.entries[1]}


def test_the_entry_used_least_makes_room() -> None:
    cache = GrantCache(
        capacity=3,
        absent_capacity=1,
        absent_seconds=1.0,
        credential_key=b"k" * 32,
        prefix_heads=["acme_pat"],
    )
    for number in range(3):
        cache.store(make("pat", f"id{number}", frozenset()), IDENTITY)
    cache.store(make("pat", "id3", frozenset()), IDENTITY)
    assert set(cache.entries) == {"acme_pat_id1", "acme_pat_id2", "acme_pat_id3"}
    cache.entries["acme_pat_id1"].used = True
    cache.store(make("pat", "id4", frozenset()), IDENTITY)
    assert set(cache.entries) == {"acme_pat_id1", "acme_pat_id3", "acme_pat_id4"}


def test_a_credential_that_is_verified_again_and_again_makes_room_for_others() -> None:
    """After a change, concurrent requests verify the same credential, and a token has many spellings."""
    cache = GrantCache(
        capacity=3, absent_capacity=1, absent_seconds=1.0, credential_key=b"k" * 32, prefix_heads=["acme_pat"]
    )
    entry = cache.store(make("pat", "id0", frozenset()), IDENTITY)
    for credential in (*[b"same"] * 9, *[b"other %d" % n for n in range(9)], *[b"same"] * 2):
        cache.remember(entry, credential)
        assert cache.by_credential[credential] is entry
    assert len(cache.by_credential) == 4
    cache.evict("acme_pat_id0")
    assert not cache.by_credential


def test_refusals_that_have_aged_out_are_forgotten_though_nobody_asks() -> None:
    cache = GrantCache(
        capacity=1, absent_capacity=3000, absent_seconds=10.0, credential_key=b"k" * 32, prefix_heads=["acme_pat"]
    )
    for number in range(2500):
        refused = RefusedGrant(prefix=f"acme_pat_{number}", reason=Reason.TOKEN_UNKNOWN, depends=())
        cache.store_refused(refused, 0.0 if number < 2400 else 5.0)
    cache.sweep(9.9)
    assert cache.absent == 2500
    cache.sweep(10.0)
    assert cache.absent == 1500, "a sweep takes only so many"
    for _ in range(4):
        cache.sweep(10.0)
    assert cache.absent == 100, "what is younger stays"
    assert cache.refused("acme_pat_2400", 10.0) is not None
    cache.sweep(15.0)
    assert cache.absent == 0
