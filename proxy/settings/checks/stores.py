"""Rules about the store: what PostgreSQL needs, and settings that have no effect on the embedded store."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Final

from proxy.settings.checks.candidate import Candidate, RuleViolation
from proxy.settings.model import LONGEST_SHARED_LEASE, Settings
from proxy.settings.problems import Loc
from proxy.settings.store_urls import FILES, SYSTEM, VERIFIED, PostgresqlUrl, has_password, is_shared

_DRIVER: Final = "asyncpg"
"""The module that the extra ``patgate[postgres]`` installs."""
_OF_SEVERAL: Final = ("store_session", "store_password", "store_feed", "failover")


def stores(candidate: Candidate) -> Iterator[RuleViolation]:
    """A store of several nodes without what it needs, and its settings without such a store."""
    settings = candidate.settings
    if not candidate.sound(("store",)):
        return
    if not is_shared(settings.store):
        given = settings.model_fields_set
        other: Loc | None = ("store",) if "store" in given else None
        for name in _OF_SEVERAL:
            if name in given and candidate.sound((name,)):
                yield RuleViolation(loc=(name,), message="has no effect, because store is sqlite", other=other)
        return
    if find_spec(_DRIVER) is None:
        message = f"needs the extra patgate[postgres], which is not installed (no {_DRIVER})"
        yield RuleViolation(loc=("store",), message=message)
    if settings.secret_key is None and candidate.sound(("secret_key",)):
        message = (
            "needs secret_key, the same on all nodes: at least 32 random bytes, such as those of openssl rand -hex 32; "
            "PATGATE_SECRET_KEY_FILE can name a file with it"
        )
        yield RuleViolation(loc=("store",), message=message)
    if settings.lease > LONGEST_SHARED_LEASE and candidate.sound(("lease",)):
        message = f"must be at most {LONGEST_SHARED_LEASE:.0f}s with PostgreSQL: a change may have to wait that long"
        yield RuleViolation(loc=("lease",), message=message, other=("store",))
    for name, url in _urls(settings):
        if candidate.sound((name,)):
            yield from _password_twice(candidate, (name,), url)
            yield from _files((name,), url)


def _urls(settings: Settings) -> Iterator[tuple[str, str]]:
    yield "store", settings.store
    if settings.store_session is not None:
        yield "store_session", settings.store_session


def _password_twice(candidate: Candidate, loc: Loc, url: str) -> Iterator[RuleViolation]:
    password: Loc = ("store_password",)
    if candidate.settings.store_password is not None and candidate.sound(password) and has_password(url):
        message = "contains a password, and store_password is another; keep one of the two"
        yield RuleViolation(loc=loc, message=message, other=password)


def _files(loc: Loc, url: str) -> Iterator[RuleViolation]:
    parameters = PostgresqlUrl.parse(url).parameters
    for name in FILES:
        if parameters.get(name, SYSTEM) != SYSTEM:
            try:
                with open(parameters[name], "rb"):
                    pass
            except OSError as error:
                why = os.strerror(error.errno or 0)
                yield RuleViolation(loc=loc, message=f"the file of its parameter {name} cannot be read: {why}")


def unverified(settings: Settings) -> Iterator[RuleViolation]:
    """Connections over a network on which nobody checks that the server is the right one."""
    if not is_shared(settings.store):
        return
    for name, text in _urls(settings):
        url = PostgresqlUrl.parse(text)
        if not url.is_local and url.parameters.get("sslmode") not in VERIFIED:
            message = (
                "the server's certificate is not verified, so another host on the network could pass itself off as the "
                "store; add sslmode=verify-full and sslrootcert"
            )
            yield RuleViolation(loc=(name,), message=message)
