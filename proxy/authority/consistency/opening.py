"""Opening the membership of an authority from its settings, and what a node says of itself."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AsyncExitStack

from proxy import __version__
from proxy.authority.consistency.membership import Membership
from proxy.authority.grants.page_writer import PageWriter
from proxy.authority.workers.broadcast import Broadcast
from proxy.services.nodes import NodeView
from proxy.settings.fingerprint import config_hash
from proxy.settings.model import Settings
from proxy.store import dialects
from proxy.store.migrate import REVISIONS
from proxy.store.nodes.records import NodeRow
from proxy.store.store import Store


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
