"""Opening the store and the membership of an authority from its settings, and what a node says of itself.

A shared store is judged twice. Before its tables are created or migrated, in the transaction that would do it, so that
nothing is written to one that this node would refuse. And by the node before it joins (``node.Node.judge_store``).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

from proxy import __version__
from proxy.authority.consistency import memory
from proxy.authority.consistency.judgement import LOST_CHANGES, StoreVerdict, judge
from proxy.authority.consistency.membership import Membership
from proxy.authority.grants.page_writer import PageWriter, seen_epoch
from proxy.authority.workers.broadcast import Broadcast
from proxy.core.errors import StoreUnavailable
from proxy.services import derived_secrets
from proxy.services.nodes import NodeView
from proxy.settings.fingerprint import config_hash
from proxy.settings.model import Settings
from proxy.settings.store_urls import is_shared
from proxy.store import dialects
from proxy.store.migrate import REVISIONS, BeforeMigration, Look
from proxy.store.nodes.records import NodeRow
from proxy.store.store import Store

FIRST_SHARED: Final = "0006"
"""The first revision of the schema that several nodes can share."""
EMPTY: Final = (
    "the database is empty, but this node has followed a store that was not: check the setting store. To begin with an "
    "empty store, give the node a new data directory"
)
NOT_MIGRATED: Final = "Its tables are older than this version of patgate, which has not migrated them"


def node_row(settings: Settings, started_at: float) -> NodeRow:
    """This node, without an id; ``started_at`` in unix seconds."""
    return NodeRow(
        id="",
        name=socket.gethostname()[:128],
        version=__version__,
        schema=REVISIONS[-1],
        config_hash=config_hash(settings),
        lease=settings.lease,
        started_at=started_at,
    )


def embedded_node(row: NodeRow, page: PageWriter, remaining: float) -> NodeView:
    """The one node of an embedded store; ``remaining`` seconds of its lease are left."""
    return NodeView(
        id=f"{page.incarnation:032x}",
        name=row.name,
        version=row.version,
        schema=row.schema,
        applied=page.epoch,
        lease=row.lease,
        lease_seconds=remaining,
        started_at=row.started_at,
        config_hash=row.config_hash,
        config_matches=True,
        self=True,
    )


async def open_store(settings: Settings, url: str, secret: bytes) -> Store:
    """Open the store at ``url``; create or migrate it if needed, and if this node does not refuse it.

    Raises StoreError.
    """
    return await Store.open(
        url,
        key_fingerprint=derived_secrets.fingerprint(secret),
        notify=settings.store_feed == "notify",
        session=settings.session_address() if settings.store_session is not None else None,
        before_migration=_judge_first(settings) if is_shared(settings.store) else None,
    )


def _judge_first(settings: Settings) -> BeforeMigration:
    async def judge_first(revision: str | None, look: Look) -> None:
        """Raise StoreUnavailable for a store that this node would refuse."""
        known = await asyncio.to_thread(memory.load, settings.data_dir)
        page = await asyncio.to_thread(seen_epoch, settings.data_dir)
        if known is None and not page:
            return
        if revision is None:
            raise StoreUnavailable(EMPTY)
        if revision < FIRST_SHARED:
            raise StoreUnavailable(f"{LOST_CHANGES}. {NOT_MIGRATED}")
        seen = await look(known)
        found = judge(seen, known, page=page, trust_standby=settings.failover == "synchronous")
        if found.verdict is StoreVerdict.REFUSED:
            raise StoreUnavailable(f"{found.why}. {NOT_MIGRATED}")

    return judge_first


async def open_membership(
    stack: AsyncExitStack,
    settings: Settings,
    row: NodeRow,
    *,
    store: Store,
    page: PageWriter,
    broadcast: Broadcast,
    owned: Callable[[], bool],
    timed: Callable[[float], None],
) -> Membership:
    """A membership that has judged the store and follows it; it is closed with ``stack``. Raises StoreError."""
    listen = settings.store_feed == "notify"
    membership = Membership(
        store,
        page,
        broadcast,
        dialects.node_sessions(settings.session_address(), lease=settings.lease, listen=listen),
        row,
        settings.data_dir,
        listen=listen,
        trust_standby=settings.failover == "synchronous",
        owned=owned,
        timed=timed,
    )
    stack.push_async_callback(membership.close)
    await membership.open()
    return membership
