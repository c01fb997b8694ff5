"""Containment: a token that another token creates or changes permits nothing more than that one, and never outlives it.

Checked against ``core.decision.decide``, which does not know the containment rules. The tests issue, rotate and
regenerate tokens and change scopes, on tokens that the acting token issued and on others of its owner, in chains.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.core.decision import decide
from proxy.core.errors import Conflict, Forbidden, Invalid, NotFound
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Actor, Grant
from proxy.core.networks import AddressRanges
from proxy.core.permissions import PermissionSet
from proxy.core.reasons import Reason
from proxy.core.routes import Match, Route
from proxy.services.tokens.issuance import KeyRequest, TokenRequest
from proxy.services.views import Created
from tests.contract.kit import ADMIN, Kit, opened

ORGS = ("lab", "shop")
ROUTE = Route(index=0, path="/a")
MATCHES = [
    Match(ROUTE, entity, entity_id, operation, org)
    for entity, entity_id, operation, org in product(
        ("things", "channels", "patgate.tokens"), (None, "7"), ("read", "update", "list"), (None, *ORGS)
    )
]
TEXTS = ("things:read", "things:*", "things/7:update", "channels:read", "*:read", "*:*", "patgate.tokens:*")
scopes = st.none() | st.lists(st.sampled_from(TEXTS), max_size=3, unique=True).map(tuple)
RANGES = (("10.0.0.0/8",), ("10.1.0.0/16",), ("10.0.0.0/9", "10.128.0.0/9"), ("192.0.2.7", "10.1.2.3"), ("0.0.0.0/0",))
ADDRESSES = ("10.1.2.3", "10.200.0.1", "192.0.2.7", "203.0.113.9")
ranges = st.none() | st.sampled_from(RANGES)
lifetimes = st.none() | st.sampled_from((50.0, 100.0, 200.0))
places = st.sampled_from(((None, Reach.PERSONAL), ("lab", Reach.ORG), ("shop", Reach.ORG), (None, Reach.ACCOUNT)))


@dataclass(frozen=True)
class Attempt:
    """One operation: ``verb`` is the operation; ``by`` and ``on`` are indexes of the acting and of the target token."""

    verb: str
    by: int
    on: int
    place: tuple[str | None, Reach]
    expires: float | None
    scopes: tuple[str, ...] | None
    ranges: tuple[str, ...] | None = None


attempts = st.builds(
    Attempt,
    verb=st.sampled_from(("mint", "mint", "mint", "key", "rotate", "regenerate", "add", "set", "ips")),
    by=st.integers(0, 5),
    on=st.integers(0, 5),
    place=places,
    expires=lifetimes,
    scopes=scopes,
    ranges=ranges,
)


class Runs:
    """One store for all examples; each example has its own owner."""

    def __init__(self) -> None:
        self.stack = AsyncExitStack()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.users = 0
        self.made = 0
        self.kit: Kit = self.runner.run(self.open())

    async def open(self) -> Kit:
        kit = await self.stack.enter_async_context(opened(Path(self.directory.name)))
        # The same role everywhere, so that only the tokens themselves differ.
        await kit.roles.sync_config(ADMIN, {"all": ["*:*"]})
        for org in ORGS:
            await kit.orgs.add(ADMIN, org)
        return kit

    def close(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()
        self.directory.cleanup()

    async def owner(self) -> str:
        self.users += 1
        email = f"u{self.users}@example.org"
        await self.kit.users.add(ADMIN, email, "all")
        for org in ORGS:
            await self.kit.users.add(ADMIN, email, "all", org=org)
        return email

    async def grant(self, prefix: str) -> Grant:
        verdict = await self.kit.resolve(prefix)
        assert isinstance(verdict, Grant)
        return verdict

    async def example(self, first: Attempt, other: Attempt, tried: list[Attempt]) -> None:
        """Create two tokens as the operator, then run the attempts, each by a token whose value is known."""
        kit = self.kit
        user = await self.owner()
        held = [
            await kit.mint(
                user,
                "t",
                org=one.place[0],
                reach=one.place[1],
                expires=one.expires,
                scopes=one.scopes,
                ip_ranges=one.ranges,
            )
            for one in (first, other)
        ]
        values = {held[0].view.id: held[0]}
        for attempt in tried:
            by = list(values.values())[attempt.by % len(values)]
            on = held[attempt.on % len(held)]
            before = await self.grant(by.view.prefix)
            if attempt.verb == "regenerate":
                if on.view.id in values:
                    continue
                await kit.tokens.revoke(ADMIN, on.view.id)
            try:
                made = await self.attempted(attempt, await self.acting(by), on)
            except (Forbidden, Conflict, Invalid, NotFound):
                if attempt.verb == "regenerate":
                    await kit.tokens.regenerate(ADMIN, on.view.id)
                continue
            self.made += 1
            after = await self.grant(on.view.prefix if made is None else made.view.prefix)
            if after.token_id == before.token_id:
                before = replace(before, prefix=after.prefix)
            contained(before, after, kit.clock())
            if made is not None:
                values[made.view.id] = made
                held = [one for one in held if one.view.id != made.view.id] + [made]

    async def acting(self, by: Created) -> Actor:
        """The holder of this token, at an address from which it may be used."""
        held = (await self.grant(by.view.prefix)).ranges
        address = next(one for one in ADDRESSES if held is None or held.contain(one))
        return replace(self.kit.acting(by), address=address)

    async def attempted(self, attempt: Attempt, actor: Actor, on: Created) -> Created | None:
        """The token or key with its new value; None if only the scopes of a token changed."""
        tokens = self.kit.tokens
        org, reach = attempt.place
        if attempt.verb == "mint":
            new = TokenRequest(
                name="t",
                org=org,
                reach=reach,
                expires=attempt.expires,
                scopes=attempt.scopes,
                ip_ranges=attempt.ranges,
            )
            return await tokens.create(actor, new)
        if attempt.verb == "key":
            read = attempt.scopes or ("things:read",)
            grants = dict.fromkeys(ORGS, read)
            new_key = KeyRequest(name="k", grants=grants, expires=attempt.expires, ip_ranges=attempt.ranges)
            return await self.kit.keys.create(actor, new_key)
        if attempt.verb == "rotate":
            return await tokens.rotate(actor, on.view.id)
        if attempt.verb == "regenerate":
            return await tokens.regenerate(actor, on.view.id, expires=attempt.expires)
        if attempt.verb == "ips":
            old = (await tokens.show(ADMIN, on.view.id)).ip_ranges
            new_ranges = (await tokens.set_ip_ranges(actor, on.view.id, attempt.ranges)).view.ip_ranges
            # Narrower ranges need not be contained; a token may have narrowed itself away from this address.
            if not widened(old, new_ranges):
                raise Conflict("no address was added")
            return None
        before = (await tokens.show(ADMIN, on.view.id)).scopes
        edit = tokens.add_scopes if attempt.verb == "add" else tokens.set_scopes
        after = (await edit(actor, on.view.id, attempt.scopes or ())).view.scopes
        # Only added permissions must be contained: neither a removed scope nor one that others cover adds any.
        if before is None or after is None or covers(before, after) or on.view.id == actor.id:
            raise Conflict("nothing was added")
        return None


def widened(before: Sequence[str] | None, after: Sequence[str] | None) -> bool:
    """Whether one of the addresses was added."""
    old, new = ((None if texts is None else AddressRanges.of(texts)) for texts in (before, after))
    return any((new is None or new.contain(one)) and old is not None and not old.contain(one) for one in ADDRESSES)


def covers(before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether the scopes ``after`` permit nothing more than the scopes ``before``."""
    return PermissionSet.of(before).covers(PermissionSet.of(after))


def contained(maker: Grant, made: Grant, now: float) -> None:
    """Check that ``made`` permits nothing that ``maker`` does not, now and at every expiry."""
    times = {now, *(end for end in (maker.expires_at, made.expires_at) if end is not None)}
    for match, at, address in product(MATCHES, times, ADDRESSES):
        if decide(match, made, at, address) is not Reason.ALLOWED:
            continue
        # If the route has no organisation, an organisation token is used in its own.
        asked = match._replace(org=made.org_name) if match.org is None and made.org_id else match
        if made.kind is Kind.KEY and maker.reach is Reach.PERSONAL:
            # An account role is valid in every organisation, for what belongs to organisations.
            asked = match._replace(org=None)
        verdicts = (decide(match, maker, at, address), decide(asked, maker, at, address))
        assert Reason.ALLOWED in verdicts, (match, address, maker, made)
    if maker.expires_at is not None:
        assert made.expires_at is not None and made.expires_at <= maker.expires_at
    if made.user_id:
        assert made.user_id == maker.user_id


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.close()


LAB = ("lab", Reach.ORG)
COVERED = Attempt(verb="add", by=0, on=1, place=LAB, expires=None, scopes=("things:read", "things:*"))
"""A scope that the token's own already cover is added by a token that expires earlier."""


@example(
    first=Attempt(verb="mint", by=0, on=0, place=LAB, expires=50.0, scopes=None),
    other=Attempt(verb="mint", by=0, on=0, place=LAB, expires=None, scopes=("things:read", "*:*")),
    tried=[COVERED],
)
@settings(max_examples=40)
@given(first=attempts, other=attempts, tried=st.lists(attempts, min_size=3, max_size=8))
def test_what_a_token_makes_is_contained_in_it(
    runs: Runs, first: Attempt, other: Attempt, tried: list[Attempt]
) -> None:
    runs.runner.run(runs.example(first, other, tried))


def test_what_is_contained_is_made(runs: Runs) -> None:
    """The other property would also hold if everything were refused."""
    wide, lab = (None, Reach.ACCOUNT), ("lab", Reach.ORG)
    maker = Attempt(verb="", by=0, on=0, place=wide, expires=200.0, scopes=("things:*", "patgate.tokens:*"))
    narrow = replace(maker, place=lab, expires=50.0, scopes=("things:read",))
    tried = [
        replace(narrow, verb="mint"),
        replace(narrow, verb="regenerate", on=1),
        replace(narrow, verb="rotate", on=1),
        replace(narrow, verb="add", on=1, scopes=("things/7:update",)),
        replace(narrow, verb="mint", by=1, scopes=("things/7:read",)),
        replace(narrow, verb="mint", ranges=RANGES[1]),
    ]
    before = runs.made
    runs.runner.run(runs.example(maker, narrow, tried))
    assert runs.made == before + len(tried)
