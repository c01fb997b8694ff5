"""Several ``Store`` objects over one database, and small writes of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from proxy.store.audit.chain import Event
from proxy.store.audit.request_events import RequestEvent
from proxy.store.store import Store
from tests.contract.kit import ADMIN, FINGERPRINT
from tests.support import stores


@asynccontextmanager
async def writers(directory: Path, count: int = 2) -> AsyncIterator[list[Store]]:
    """Several stores over one database."""
    made: list[Store] = []
    try:
        for _ in range(count):
            made.append(await Store.open(stores.address_of(directory), key_fingerprint=FINGERPRINT))
        yield made
    finally:
        for store in made:
            await store.close()


async def add(store: Store, key: str) -> None:
    async with store.change(ADMIN) as change:
        change.touched(key)
        change.audit("test.change", target_kind="test", target_id=key)


def request(number: int) -> RequestEvent:
    event = Event(action="request.read", target_kind="route", target_id="t", decision_id=f"d{number}")
    return RequestEvent(event=event, prefix="", proven=False, at=float(number))
