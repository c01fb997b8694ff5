"""Filling a store as after years of use, in minutes: users, organisations, tokens of every status and their usage.

The schema is the store's own, created by ``Store.open``. The rows are inserted through one connection without syncs, in
the order of their creation, and the indexes are built afterwards: building one at once sorts, while growing one with
random ids reads and writes all over it. Everything is drawn from one seed.

The distribution is as uneven as in real stores, since that makes lists slow: a few organisations have most of the
tokens, one user has thousands, most old tokens have expired, few are revoked, keys are few.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.datasets.tokens import ROLES
from bench.load.workload import BRAND
from proxy.core.kinds import Kind, Reach
from proxy.core.model import TokenStatus, UserStatus
from proxy.core.token import ALPHABET, ID_LENGTH, SECRET_LENGTH, checksum, digest
from proxy.services import derived_secrets
from proxy.settings.sources.secret import load_or_create
from proxy.store.address import sqlite_path, store_url
from proxy.store.store import Store

USERS_SHARE: Final = 20
"""Tokens for each user."""
ORGS: Final = 200
VALID_TOKENS: Final = 20_000
"""Number of active tokens whose whole value is known, so that they can be presented."""
DAY: Final = 86_400.0
YEARS: Final = 3 * 365 * DAY
_LARGEST_OWNER_SHARE: Final = 101
"""One token in this many belongs to the user who has the most."""
_HASH: Final = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$0000000000000000000000000000000000000000000"
_SCOPES: Final = (None, None, '["*:read","*:list"]', '["things:*","channels:publish"]')
_WORDS: Final = ("deploy", "backup", "laptop", "ci", "terraform", "export", "sensor", "report", "sync", "probe")
_CACHE_KIB: Final = 1 << 19
_PLACES: Final = "?" * 64


@dataclass(kw_only=True, slots=True)
class Filled:
    """The contents of the store that measurements need. Times are unix seconds."""

    database: Path
    now: float
    users: list[str] = field(default_factory=list)
    """Ids. The first has the most tokens; ``email`` gives the address."""
    orgs: list[str] = field(default_factory=list)
    """Names, the largest first."""
    org_ids: list[str] = field(default_factory=list)
    tokens: list[Known] = field(default_factory=list)
    """Every token, in the order of creation."""
    valid_tokens: list[str] = field(default_factory=list)
    """Whole values of active personal tokens."""


@dataclass(frozen=True, slots=True)
class Known:
    """The fields of a token that audit events contain."""

    id: str
    kind: str
    name: str
    user_id: str
    org_id: str
    created_at: float


def email(number: int) -> str:
    return f"user{number}@example.org"


def fill(data_dir: Path, *, tokens: int, seed: int, now: float) -> Filled:
    """Create the store in ``data_dir`` with this many tokens and a twentieth as many users. It must not be open.

    The indexes are those of ``Store.open``. ``datasets.audit_log`` adds audit events.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    url = store_url("sqlite", data_dir)
    secret_key = load_or_create(data_dir, sqlite_path(url))
    asyncio.run(_create(url, derived_secrets.fingerprint(secret_key)))
    filled = Filled(database=sqlite_path(url), now=now)
    rng = random.Random(seed)
    with closing(bulk(filled.database)) as connection, without_indexes(connection, _TABLES):
        _people(connection, filled, rng, max(ORGS, tokens // USERS_SHARE))
        _tokens(connection, filled, rng, tokens, derived_secrets.cache_key(secret_key))
    return filled


async def _create(url: str, key_fingerprint: str) -> None:
    store = await Store.open(url, key_fingerprint=key_fingerprint)
    await store.close()


def bulk(database: Path) -> sqlite3.Connection:
    """A connection for filling; a crash would damage the file, which would be no loss."""
    connection = sqlite3.connect(database, isolation_level=None)
    for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", f"cache_size=-{_CACHE_KIB}"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


@contextmanager
def without_indexes(connection: sqlite3.Connection, tables: Sequence[str]) -> Iterator[None]:
    """Run the block in a transaction without the indexes of ``tables``, which are built again at its end."""
    found = connection.execute("SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'index'").fetchall()
    dropped = [(name, sql) for table, name, sql in found if table in tables and sql is not None]
    for name, _ in dropped:
        connection.execute(f'DROP INDEX "{name}"')
    connection.execute("BEGIN")
    yield
    connection.execute("COMMIT")
    for _, sql in dropped:
        connection.execute(sql)


def insert(connection: sqlite3.Connection, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
    """Insert rows of ``columns`` (names, separated by spaces)."""
    names = columns.split()
    places = ", ".join(_PLACES[: len(names)])
    connection.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({places})", rows)


_TABLES: Final = ("users", "orgs", "members", "tokens", "token_usage", "token_orgs")


def _people(connection: sqlite3.Connection, filled: Filled, rng: random.Random, count: int) -> None:
    began, step = filled.now - YEARS, YEARS / count
    filled.orgs = [f"org-{number}" for number in range(ORGS)]
    filled.org_ids = [f"org_{_word(rng)}" for _ in filled.orgs]
    rows = [
        (id_, name, name, "suspended" if number == ORGS - 1 else "active", began + number, began + number)
        for number, (id_, name) in enumerate(zip(filled.org_ids, filled.orgs, strict=True))
    ]
    insert(connection, "orgs", "id name display_name status created_at updated_at", rows)
    filled.users = [f"usr_{_word(rng)}" for _ in range(count)]

    def users() -> Iterator[Sequence[Any]]:
        for number, id_ in enumerate(filled.users):
            at, status = began + number * step, _user_status(number)
            removed = at + DAY if status is UserStatus.REMOVED else None
            address = email(number)
            yield id_, address, address, f"User {number}", ROLES[number % len(ROLES)], status.value, at, at, removed

    insert(connection, "users", "id email email_key name role status created_at updated_at removed_at", users())

    def members() -> Iterator[Sequence[Any]]:
        for number, id_ in enumerate(filled.users):
            if _user_status(number) is not UserStatus.REMOVED:
                at = began + number * step
                for org in _orgs_of(number):
                    yield filled.org_ids[org], id_, ROLES[(number + org) % len(ROLES)], at, at

    insert(connection, "members", "org_id user_id role created_at updated_at", members())


def _word(rng: random.Random) -> str:
    return "".join(rng.choices(ALPHABET, k=ID_LENGTH))


def _user_status(number: int) -> UserStatus:
    if number % 100 == 99:
        return UserStatus.REMOVED
    return UserStatus.SUSPENDED if number % 500 == 250 else UserStatus.ACTIVE


def _orgs_of(number: int) -> tuple[int, ...]:
    """The organisations of a user: every third user is in the largest, and every user in a smaller one."""
    small = 1 + number % (ORGS - 1)
    return (0, small) if number % 3 == 0 else (small,)


_TOKEN: Final = (
    "id prefix kind reach name description user_id org_id role scopes status hash digest parent_id created_by_kind "
    "created_by created_at updated_at expires_at revoked_at listed_as"
)


def _tokens(connection: sqlite3.Connection, filled: Filled, rng: random.Random, count: int, cache_key: bytes) -> None:
    """Most are PATs; one in 500 is a key, and of these one in ten is attached to several organisations."""
    usage: list[Sequence[Any]] = []
    attached: list[Sequence[Any]] = []
    # About one in nine is personal and active.
    share = VALID_TOKENS * 9 / count

    def rows() -> Iterator[Sequence[Any]]:
        for number in range(count):
            at = filled.now - YEARS + YEARS * number / count
            drawn = _draw(filled, rng, number, count, at)
            token_id = _word(rng)
            kind = drawn.kind.value
            prefix = f"{BRAND}_{kind}_{token_id}"
            valid = drawn.works and rng.random() < share
            value = _value(rng, prefix) if valid else None
            name = f"{_WORDS[number % len(_WORDS)]}-{number}"
            if value is not None:
                filled.valid_tokens.append(value)
            filled.tokens.append(Known(token_id, kind, name, drawn.user_id or "", drawn.org_id or "", at))
            # One token has minted all others of the user with the most.
            of_largest_owner = number and drawn.user_id == filled.users[0]
            first = filled.tokens[0].id
            minted_by = (first, "pat", first) if of_largest_owner else (None, "person", drawn.user_id or "usr_gone")
            usage.extend(_usage(rng, token_id, at, filled.now))
            attached.extend((token_id, org, '["things:read"]', at) for org in drawn.attached)
            yield (
                token_id, prefix, kind, drawn.reach.value, name, "", drawn.user_id, drawn.org_id,
                "viewer" if drawn.reach is Reach.ORG and drawn.kind is Kind.KEY else None,
                rng.choice(_SCOPES), drawn.status.value, _HASH,
                rng.randbytes(32) if value is None else digest(cache_key, value.encode()),
                *minted_by, at, at, drawn.expires_at,
                at + DAY if drawn.status is TokenStatus.REVOKED else None, drawn.listed_as.value,
            )  # fmt: skip

    insert(connection, "tokens", _TOKEN, rows())
    insert(connection, "token_usage", "token_id last_used_at last_used_ip use_count", usage)
    insert(connection, "token_orgs", "token_id org_id permissions created_at", attached)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawn:
    kind: Kind
    reach: Reach
    user_id: str | None
    org_id: str | None
    attached: tuple[str, ...]
    status: TokenStatus
    listed_as: TokenStatus
    expires_at: float | None
    works: bool


def _draw(filled: Filled, rng: random.Random, number: int, count: int, at: float) -> _Drawn:
    key = number % 500 == 77
    user: int | None = None
    org: int | None = None
    attached: tuple[str, ...] = ()
    owner_active, removed = True, False
    if key:
        reach = Reach.ORGS if number % 5000 == 77 else Reach.ORG
        chosen = rng.sample(range(ORGS - 1), 3) if reach is Reach.ORGS else [_large_first(rng)]
        attached = tuple(filled.org_ids[one] for one in chosen) if reach is Reach.ORGS else ()
        org = None if attached else chosen[0]
    else:
        # A user who existed by then; the first has the most tokens.
        existing = max(1, len(filled.users) * number // count)
        user = 0 if number % _LARGEST_OWNER_SHARE == 0 else rng.randrange(existing)
        status = _user_status(user)
        removed, owner_active = status is UserStatus.REMOVED, status is UserStatus.ACTIVE
        reach = (Reach.PERSONAL, Reach.ORG, Reach.ORG, Reach.ACCOUNT)[number % 4]
        org = rng.choice(_orgs_of(user)) if reach is Reach.ORG else None
    # Of those created more than 90 days ago, two in three had an expiry, which has passed.
    expires_at = None if number % 3 == 0 else at + 90 * DAY
    expired = expires_at is not None and expires_at <= filled.now
    status_ = TokenStatus.REVOKED if rng.random() < 0.001 else TokenStatus.ACTIVE
    listed_as = TokenStatus.REVOKED if removed or status_ is TokenStatus.REVOKED else TokenStatus.ACTIVE
    # Tokens that expired in the last hour are not listed as expired yet.
    if listed_as is TokenStatus.ACTIVE and expires_at is not None and expires_at <= filled.now - 3600:
        listed_as = TokenStatus.EXPIRED
    return _Drawn(
        kind=Kind.KEY if key else Kind.PAT,
        reach=reach,
        user_id=None if user is None else filled.users[user],
        org_id=None if org is None else filled.org_ids[org],
        attached=attached,
        status=status_,
        listed_as=listed_as,
        expires_at=expires_at,
        works=reach is Reach.PERSONAL and owner_active and not expired and status_ is TokenStatus.ACTIVE,
    )


def _large_first(rng: random.Random) -> int:
    return 0 if rng.random() < 0.3 else rng.randrange(ORGS)


def _value(rng: random.Random, prefix: str) -> str:
    body = f"{prefix}_{''.join(rng.choices(ALPHABET, k=SECRET_LENGTH))}"
    return body + checksum(body)


def _usage(rng: random.Random, token_id: str, at: float, now: float) -> Iterator[Sequence[Any]]:
    if rng.random() < 0.6:
        used = at + (now - at) * rng.random()
        yield token_id, used, f"192.0.2.{rng.randrange(256)}", rng.randrange(1, 100_000)
