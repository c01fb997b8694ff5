"""The authenticate phase, with a scripted authority behind a real link."""

from __future__ import annotations

import asyncio
import base64
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.core.credential_places import PresentedFields
from proxy.core.ipc.clock import boottime_ns
from proxy.core.ipc.shared_memory import SLOT_EPOCH, SLOT_LEASE
from proxy.core.ipc.wire import Message
from proxy.core.kinds import Kind
from proxy.core.model import RefusedGrant
from proxy.core.reasons import Reason
from proxy.core.token import Minted, checksum
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants import authority_client
from proxy.gateway.grants.authority_client import AuthorityLink
from proxy.gateway.grants.cache import GrantCache
from proxy.gateway.phases.authenticate import PENDING, Authenticator
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.kit import IDENTITY, TOKENS, make_cache, make_grant, make_page, places_of, until
from tests.unit.gateway.scripted import Authority, authority_at

REFUSED_ANOTHER = {"refused": {"prefix": "acme_pat_000000000000", "reason": "token_unknown", "depends": []}}


class World:
    """One worker's cache, link and authenticator, the shared page, and the authority."""

    def __init__(self, authority: Authority, words: tuple[str, ...]) -> None:
        self.authority = authority
        self.page = make_page()
        self.states: list[bool] = []
        self.cache: GrantCache = make_cache()
        self.link = AuthorityLink(authority.path, slot=3, cache=self.cache, on_state=self.states.append)
        self.authenticator = Authenticator(
            cache=self.cache,
            link=self.link,
            page=self.page,
            tokens=TOKENS,
            identity=IDENTITY,
            places=places_of(*words),
        )

    def known(self, *, verified: bool = True) -> Minted:
        """A token that the authority knows."""
        minted = TOKENS.mint(Kind.PAT)
        self.authority.grants[minted.prefix] = make_grant(minted, verified=verified)
        return minted

    def commit(self, *keys: str) -> None:
        """Make a change as the authority does: commit it, then set the epoch on the shared page."""
        self.page[SLOT_EPOCH] = self.authority.change(*keys)

    def exchange(self, authorization: bytes | None = None, api_key: bytes | None = None) -> Exchange:
        x = Exchange(None, boottime_ns(), b"id")
        x.authorization = authorization
        if api_key is not None:
            x.presented = PresentedFields(drop_misplaced=False)
            x.presented.fields.append((b"x-api-key", api_key, b"X-API-Key: " + api_key))
        return x

    async def ask(self, authorization: bytes | None = None, api_key: bytes | None = None) -> Reason | None:
        """The verdict on a credential; None is acceptance."""
        x = self.exchange(authorization, api_key)
        answer = self.authenticator.authenticate(x)
        reason = await self.authenticator.settle(x) if answer is PENDING else answer
        assert (reason is None) == (x.entry is not None)
        return reason

    async def bearer(self, token: str) -> Reason | None:
        return await self.ask(b"Bearer " + token.encode())


@asynccontextmanager
async def world(words: tuple[str, ...] = ("bearer", "basic", "x-api-key")) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory() as directory:
        async with authority_at(Path(directory) / "link.sock") as authority:
            worker = World(authority, words)
            worker.link.start()
            try:
                await until(lambda: worker.states == [True])
                yield worker
            finally:
                await worker.link.close()


def forged(minted: Minted) -> str:
    """A token with the same prefix, another secret and a valid checksum."""
    body = f"{minted.prefix}_{'x' * 32}"
    return body + checksum(body)


async def test_a_token_is_looked_up_once_and_then_found_here() -> None:
    async with world() as w:
        token = w.known().token
        for _ in range(3):
            assert await w.bearer(token) is None
        assert w.authority.asked == {"hello": 1, "resolve": 1}
        assert (w.authenticator.hits, w.authenticator.misses) == (2, 1)
        (resolve,) = [m for m in w.authority.messages if m["op"] == "resolve"]
        assert token not in str(resolve)


async def test_changes_up_to_the_current_epoch_are_applied_before_the_decision() -> None:
    async with world() as w:
        minted = w.known()
        assert await w.bearer(minted.token) is None
        w.authority.grants[minted.prefix] = RefusedGrant(
            prefix=minted.prefix, reason=Reason.TOKEN_REVOKED, depends=(f"token:{minted.token_id}",)
        )
        w.commit(f"token:{minted.token_id}")
        assert await w.bearer(minted.token) is Reason.TOKEN_REVOKED
        assert w.cache.applied == w.page[SLOT_EPOCH] == 1
        assert w.authority.asked["changes"] == 1


async def test_a_change_to_another_token_costs_no_lookup() -> None:
    async with world() as w:
        token = w.known().token
        assert await w.bearer(token) is None
        w.commit("token:another")
        assert await w.bearer(token) is None
        assert w.authority.asked == {"hello": 1, "resolve": 1, "changes": 1}


@pytest.mark.parametrize("key", ["user:usr1", "role:admin"])
async def test_a_change_to_anything_that_a_grant_depends_on_removes_it(key: str) -> None:
    async with world() as w:
        token = w.known().token
        assert await w.bearer(token) is None
        w.commit(key)
        assert await w.bearer(token) is None
        assert w.authority.asked["resolve"] == 2


async def test_many_requests_that_wait_for_one_change_fetch_it_once() -> None:
    async with world() as w:
        token = w.known().token
        assert await w.bearer(token) is None
        w.commit("user:another")
        credentials = [b"Bearer" + b" " * n + token.encode() for n in range(1, 30)]
        assert await asyncio.gather(*(w.ask(c) for c in credentials * 3)) == [None] * 87
        assert w.authority.asked["changes"] == 1
        assert w.authority.asked["resolve"] == 1
        assert len(w.cache.by_credential) <= 4


async def test_an_answer_older_than_a_change_is_not_stored() -> None:
    """The lookup was made before the revocation and comes back after it."""
    async with world() as w:
        minted = w.known()
        old = w.authority.found(minted.prefix)

        def stale(message: Message) -> Message:
            if w.authority.asked["resolve"] == 1:
                w.authority.grants[minted.prefix] = RefusedGrant(
                    prefix=minted.prefix, reason=Reason.TOKEN_REVOKED, depends=()
                )
                w.commit(f"token:{minted.token_id}")
                w.authority.push({"push": "changes", "since": 0, "epoch": 1, "keys": [f"token:{minted.token_id}"]})
                return {"as_of": 0, "found": [old]}
            return w.authority.resolved(message, 1)

        w.authority.answers["resolve"] = stale
        assert await w.bearer(minted.token) is Reason.TOKEN_REVOKED
        assert minted.prefix not in w.cache.entries
        assert w.authority.asked["resolve"] == 2


async def test_an_authority_with_outdated_answers_counts_as_unavailable() -> None:
    async with world() as w:
        minted = w.known()
        w.commit("token:x")
        w.authority.answers["resolve"] = lambda message: w.authority.resolved(message, 0)
        assert await w.bearer(minted.token) is Reason.AUTHORITY_UNAVAILABLE
        assert not w.cache.entries


async def test_without_a_lease_nothing_is_decided() -> None:
    async with world() as w:
        token = w.known().token
        assert await w.bearer(token) is None
        for lease in (0, boottime_ns() - 1):
            w.page[SLOT_LEASE] = lease
            assert await w.bearer(token) is Reason.AUTHORITY_UNAVAILABLE
            assert await w.bearer(forged(w.known())) is Reason.AUTHORITY_UNAVAILABLE
            assert await w.ask() is Reason.AUTHORITY_UNAVAILABLE


async def test_a_lease_that_expires_during_a_lookup_refuses_the_request() -> None:
    async with world() as w:
        minted = w.known()

        def late(message: Message) -> Message:
            w.page[SLOT_LEASE] = 0
            return w.authority.resolved(message, 0)

        w.authority.answers["resolve"] = late
        x = w.exchange(b"Bearer " + minted.token.encode())
        assert w.authenticator.authenticate(x) is PENDING
        assert await w.authenticator.settle(x) is Reason.AUTHORITY_UNAVAILABLE


async def test_a_wrong_secret_of_a_known_prefix_is_refused_without_a_lookup() -> None:
    async with world() as w:
        minted = w.known()
        assert await w.bearer(minted.token) is None
        asked = dict(w.authority.asked)
        for _ in range(5):
            assert await w.bearer(forged(minted)) is Reason.TOKEN_WRONG_SECRET
        assert dict(w.authority.asked) == asked
        assert await w.bearer(minted.token) is None


async def test_two_tokens_of_one_prefix_in_flight_share_the_lookup_and_not_the_verdict() -> None:
    async with world() as w:
        minted = w.known()
        verdicts = await asyncio.gather(*(w.bearer(t) for t in (minted.token, forged(minted)) * 5))
        assert verdicts == [None, Reason.TOKEN_WRONG_SECRET] * 5
        assert w.authority.asked["resolve"] == 1


async def test_a_token_that_was_never_verified_is_verified_at_the_authority() -> None:
    async with world() as w:
        minted = w.known(verified=False)

        def verify(message: Message) -> Message:
            if message["token"] != minted.token:
                refused = {"prefix": minted.prefix, "reason": "token_wrong_secret", "depends": []}
                return {"as_of": 0, "refused": refused}
            w.authority.grants[minted.prefix] = make_grant(minted)
            return {"as_of": 0, **w.authority.found(minted.prefix)}

        w.authority.answers["verify"] = verify
        assert await w.bearer(forged(minted)) is Reason.TOKEN_WRONG_SECRET
        assert await w.bearer(minted.token) is None
        assert await w.bearer(forged(minted)) is Reason.TOKEN_WRONG_SECRET
        assert await w.bearer(minted.token) is None
        assert w.authority.asked["verify"] == 2


async def test_a_refusal_is_remembered_until_it_changes() -> None:
    async with world() as w:
        minted = w.known()
        grant = w.authority.grants.pop(minted.prefix)
        for _ in range(3):
            assert await w.bearer(minted.token) is Reason.TOKEN_UNKNOWN
        assert w.authority.asked["resolve"] == 1
        w.authority.grants[minted.prefix] = grant
        w.commit(f"token:{minted.token_id}")
        assert await w.bearer(minted.token) is None


async def test_a_credential_that_is_not_a_token_is_refused_without_a_lookup() -> None:
    async with world() as w:
        token = w.known().token
        for text in ("x", token[:-1], token + "0", token.swapcase(), token.replace("acme", "else"), "a" * 5000):
            assert await w.bearer(text) is Reason.TOKEN_UNKNOWN
            assert await w.ask(api_key=text.encode()) is Reason.TOKEN_UNKNOWN
        assert await w.ask(api_key=b"\xff\xfe") is Reason.TOKEN_UNKNOWN
        assert w.authority.asked == {"hello": 1}


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode("latin-1"))


@pytest.mark.parametrize("shape", ["{}:", "{}:x-oauth-basic", "anyone:{}", ":{}", "a user:{}"])
async def test_basic_carries_the_token_as_password_or_as_the_only_name(shape: str) -> None:
    async with world() as w:
        token = w.known().token
        assert await w.ask(basic(shape.format(token))) is None
        assert await w.ask(basic(shape.format(token)).replace(b"Basic", b"bAsIc")) is None


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        (b"Basic", Reason.CREDENTIAL_MALFORMED),
        (b"Basic !!!!", Reason.CREDENTIAL_MALFORMED),
        (b"Basic YWJj", Reason.CREDENTIAL_MALFORMED),  # no colon
        (b"Basic OnB", Reason.CREDENTIAL_MALFORMED),  # padding
        (b"Basic Og==", Reason.NO_CREDENTIAL),  # only a colon: an anonymous user of skopeo
        (basic("user:not a token"), Reason.TOKEN_UNKNOWN),
        (basic("user:\xff"), Reason.TOKEN_UNKNOWN),
        (b"Bearer", Reason.CREDENTIAL_MALFORMED),
        (b"Bearer ", Reason.CREDENTIAL_MALFORMED),
        (b"Bearer a b", Reason.CREDENTIAL_MALFORMED),
        (b"Bearer a,b", Reason.TOKEN_UNKNOWN),
        (b"Bearer \xff", Reason.CREDENTIAL_MALFORMED),
        (b"", Reason.CREDENTIAL_MALFORMED),
        (b" ", Reason.CREDENTIAL_MALFORMED),
        (b"@", Reason.CREDENTIAL_MALFORMED),
        (b"Digest x", Reason.CREDENTIAL_UNSUPPORTED),
        (b"Negotiate abc=", Reason.CREDENTIAL_UNSUPPORTED),
    ],
)
async def test_an_authorization_without_a_usable_token_is_refused(authorization: bytes, reason: Reason) -> None:
    async with world() as w:
        assert await w.ask(authorization) is reason
        assert w.authority.asked == {"hello": 1}


async def test_spaces_and_case_around_bearer_do_not_matter() -> None:
    async with world() as w:
        token = w.known().token.encode()
        for credential in (b"bearer " + token, b"BEARER   " + token, b"Bearer " + token + b" \t"):
            assert await w.ask(credential) is None


async def test_a_disabled_scheme_carries_no_credential() -> None:
    async with world(words=("bearer",)) as w:
        token = w.known().token
        assert await w.ask(basic(f"x:{token}")) is Reason.CREDENTIAL_UNSUPPORTED
        assert await w.bearer(token) is None


async def test_two_credentials_are_ambiguous_even_if_equal() -> None:
    async with world() as w:
        token = w.known().token.encode()
        assert await w.bearer(token.decode()) is None
        assert await w.ask(b"Bearer " + token, token) is Reason.CREDENTIAL_AMBIGUOUS
        assert await w.ask(b"Bearer theirs", token) is Reason.CREDENTIAL_AMBIGUOUS


async def test_a_request_without_a_credential_is_refused() -> None:
    async with world() as w:
        assert await w.ask() is Reason.NO_CREDENTIAL
        assert await w.ask(api_key=b"") is Reason.CREDENTIAL_MALFORMED


async def test_a_credential_cached_from_one_field_is_not_accepted_in_the_other() -> None:
    async with world() as w:
        token = w.known().token.encode()
        assert await w.ask(api_key=token) is None
        # The value that the first-level map holds for X-API-Key does not match as an Authorization value.
        assert await w.ask(token) is Reason.CREDENTIAL_UNSUPPORTED
        assert await w.ask(b"Bearer " + token) is None
        assert await w.ask(api_key=b"Bearer " + token) is Reason.TOKEN_UNKNOWN


async def test_without_the_link_no_token_is_refused_as_invalid() -> None:
    async with world() as w:
        known, unseen = w.known(), w.known()
        assert await w.bearer(known.token) is None
        await w.authority.stop()
        await until(lambda: w.states == [True, False])
        # Cached grants stay valid until the lease ends or a change comes.
        assert await w.bearer(known.token) is None
        assert await w.bearer(unseen.token) is Reason.AUTHORITY_UNAVAILABLE
        w.page[SLOT_EPOCH] = 1
        assert await w.bearer(known.token) is Reason.AUTHORITY_UNAVAILABLE
        assert await w.bearer(forged(known)) is Reason.AUTHORITY_UNAVAILABLE


async def test_a_pending_lookup_is_sent_again_when_the_authority_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # As long as a busy machine needs to link again.
    monkeypatch.setattr(authority_client, "_PATIENCE_SECONDS", HANGS_SECONDS)
    async with world() as w:
        minted = w.known()
        w.authority.answers["resolve"] = lambda message: None
        asking = asyncio.create_task(w.bearer(minted.token), name="question")
        await until(lambda: w.authority.asked["resolve"])
        del w.authority.answers["resolve"]
        w.authority.hang_up()
        async with asyncio.timeout(HANGS_SECONDS):
            assert await asking is None
        assert w.authority.asked["resolve"] == 2


async def test_a_pending_lookup_fails_soon_when_the_authority_stays_away() -> None:
    async with world() as w:
        minted = w.known()
        w.authority.answers["resolve"] = lambda message: None
        asking = asyncio.create_task(w.bearer(minted.token), name="question")
        await until(lambda: w.authority.asked["resolve"])
        await w.authority.stop()
        async with asyncio.timeout(HANGS_SECONDS):
            assert await asking is Reason.AUTHORITY_UNAVAILABLE


@pytest.mark.parametrize(
    ("error", "reason"), [("overloaded", Reason.OVERLOADED), ("unavailable", Reason.AUTHORITY_UNAVAILABLE)]
)
async def test_an_error_of_the_authority_is_a_refusal(error: str, reason: Reason) -> None:
    async with world() as w:
        w.authority.answers["resolve"] = lambda message: {"error": error}
        assert await w.bearer(w.known().token) is reason
        del w.authority.answers["resolve"]
        assert await w.bearer(w.known().token) is None


@pytest.mark.parametrize(
    "answer",
    [
        {"as_of": 0, "found": [{"grant": {"prefix": 1}}]},
        {"as_of": 0, "found": [{"refused": {}}]},
        {"as_of": 0, "found": [{}]},
        {"as_of": 0, "found": [7]},
        {"as_of": 0, "found": []},
        {"as_of": 0, "found": None},
        {"as_of": 0, "found": [REFUSED_ANOTHER]},
        {"as_of": None, "found": [REFUSED_ANOTHER]},
        {"found": [{}]},
        {},
    ],
)
async def test_a_malformed_answer_of_the_authority_is_a_refusal(answer: Message) -> None:
    async with world() as w:
        token = w.known().token
        w.authority.answers["resolve"] = w.authority.answers["changes"] = lambda message: dict(answer)
        async with asyncio.timeout(HANGS_SECONDS):
            assert await w.bearer(token) is Reason.AUTHORITY_UNAVAILABLE
            w.commit("token:x")
            assert await w.bearer(token) is Reason.AUTHORITY_UNAVAILABLE


async def test_only_the_public_prefix_of_a_token_is_shown() -> None:
    async with world() as w:
        minted = w.known()
        prefix_of = w.authenticator.prefix_of
        assert prefix_of(w.exchange(b"Bearer " + minted.token.encode())) == minted.prefix
        assert prefix_of(w.exchange(basic(f"u:{minted.token}"))) == minted.prefix
        assert prefix_of(w.exchange(api_key=forged(minted).encode())) == minted.prefix
        assert prefix_of(w.exchange(b"Bearer nonsense")) is None
        assert prefix_of(w.exchange()) is None


async def test_only_credentials_that_are_not_patgates_are_forwarded() -> None:
    async with world() as w:
        token = w.known().token
        foreign = w.authenticator.foreign_credentials
        assert foreign(w.exchange(b"Bearer theirs", b"key")) == (b"\r\nAuthorization: Bearer theirs\r\nX-API-Key: key")
        assert foreign(w.exchange(basic("them:secret"))) == b"\r\nAuthorization: " + basic("them:secret")
        ours = [
            b"Bearer " + token.encode(),
            token.encode(),
            basic(f"x:{token}"),
            basic(f"{token}:"),
            b"Token " + token.encode(),
        ]
        for credential in ours:
            assert foreign(w.exchange(credential)) == b""
            assert foreign(w.exchange(api_key=credential)) == b""


async def test_malformed_basic_credentials_never_carry_a_token_to_a_backend() -> None:
    """A lenient backend may decode malformed base64, so an unreadable value with a token is not forwarded."""
    async with world() as w:
        encoded = basic(f"x:{w.known().token}").split(b" ")[1]
        for credential in (
            b"Basic\t" + encoded,
            b"Basic  " + encoded,
            b"Basic " + encoded.rstrip(b"="),
            b"Basic " + encoded + b"=",
            b"Basic " + encoded[:8] + b" " + encoded[8:],
        ):
            assert w.authenticator.foreign_credentials(w.exchange(credential)) == b"", credential
