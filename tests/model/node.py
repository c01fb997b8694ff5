"""Rules 1 to 7 and 19: what a node does by itself. Each step is a function of the node and the store alone."""

from __future__ import annotations

from tests.model.bugs import Bug
from tests.model.configuration import Configuration
from tests.model.state import ABSENT, UNCOMMITTED, Kind, Node, Store, Stored, allows, head

NAMES = ("node a", "node b")
Step = tuple[str, Node]


def steps(model: Configuration, store: Store, node: Node, index: int) -> list[Step]:
    """All that the node may do next, without faults. It follows the store's present history."""
    bugs = model.bugs
    name = NAMES[index]
    newest = head(store.changes)
    found: list[Step] = []
    if node.reply >= 0 and node.row != UNCOMMITTED:
        found.extend(_receive(model, store.changes, node, name))
    if node.cut:
        return found
    # 1, 2: one statement. What is on its way to the store would only give a shorter lease, so it takes no time.
    if node.reply == ABSENT and (node.row >= 0 or Bug.RENEW_WITHOUT_ROW in bugs):
        found.append(renew(model, store, node, index))
    # 4: two transactions; the renewal that follows is a step of its own.
    if node.row == ABSENT:
        if Bug.JOIN_IN_ONE_TRANSACTION in bugs:
            reading = node._replace(
                row=UNCOMMITTED, since=_inserted(model, store), reply=newest, left=lease_of(model, store, index)
            )
            found.append((f"{name}: inserts its row and reads head {newest}, not yet committed", reading))
        else:
            found.append(
                (f"{name}: joins, its row is committed", node._replace(row=0, since=_inserted(model, store), marks=0))
            )
    elif node.row == UNCOMMITTED:
        found.append((f"{name}: the transaction of its row is committed", node._replace(row=0, marks=0)))
    # 5: at any time, because NOTIFY may come, be lost or be forged; it is not believed.
    if newest > node.page:
        found.append((f"{name}: reads head {newest} and raises its page", raised(model, store.changes, node, newest)))
    # 6
    known = newest if Bug.ACKNOWLEDGE_FIRST in bugs else node.page
    if 0 <= node.row < known:
        found.append((f"{name}: acknowledges {known}", node._replace(row=known)))
    # 7: a lookup raises the page to its snapshot before it answers. So it is the step of rule 5, without the bug.
    if Bug.LOOKUP_LEAVES_PAGE in bugs and node.lease and node.cached is not allows(store.changes, newest):
        answer = node._replace(cached=not node.cached)
        found.append((f"{name}: a worker without X in its cache looks it up in snapshot {newest}", answer))
    return found


def _inserted(model: Configuration, store: Store) -> int:
    """``Node.since``, where it may matter."""
    return len(store.changes) if model.faults.promote else -1


def renew(model: Configuration, store: Store, node: Node, index: int) -> Step:
    """Rule 1: the clock is read, then the statement counts the renewal and returns the head."""
    newest = 0 if Bug.REPLY_WITHOUT_HEAD in model.bugs else head(store.changes)
    left = lease_of(model, store, index)
    returned = "no head" if Bug.REPLY_WITHOUT_HEAD in model.bugs else f"head {newest}"
    row = "" if node.row >= 0 else ", though it finds no row"
    return f"{NAMES[index]}: its renewal returns {returned}{row}", node._replace(reply=newest, left=left, marks=0)


def lease_of(model: Configuration, store: Store, index: int) -> int:
    """Rule 3: the smaller of the node's own lease and the bound; on a slow clock it lasts longer."""
    smaller = model.own if Bug.OWN_LEASE in model.bugs else min(model.own, store.bound)
    return smaller + model.drift[index]


def raised(model: Configuration, changes: tuple[Stored, ...], node: Node, to: int) -> Node:
    """Rules 5 and 7: the page is raised, and workers drop what the changes in (page, to] concern.

    Workers that have not yet done so decide nothing, so both are one step. A dropped verdict is looked up again, which
    gives that of a snapshot that the page has.
    """
    if to <= node.page:
        return node
    first = to if Bug.PUSH_WITHOUT_KEYS_BETWEEN in model.bugs else node.page + 1
    for change in changes:
        if first <= change.number <= to and change.kind in (Kind.REVOKE, Kind.RESTORE):
            return node._replace(page=to, cached=allows(changes, to))
    return node._replace(page=to)


def _receive(model: Configuration, changes: tuple[Stored, ...], node: Node, name: str) -> list[Step]:
    """Rule 3: the page first, the lease then."""
    if Bug.LEASE_BEFORE_PAGE in model.bugs and node.left:
        return [(f"{name}: extends its lease to {node.left}", node._replace(lease=node.left, left=0))]
    after = raised(model, changes, node, node.reply)
    if Bug.PAGE_SET in model.bugs:
        after = after._replace(page=node.reply)
    lease = node.left or node.lease
    words = f"{name}: receives the reply: page {after.page}, lease {lease}"
    return [(words, after._replace(lease=lease, reply=ABSENT, left=0))]


def tick(model: Configuration, node: Node) -> Node:
    """A tick passes: leases end, also those that are still on their way."""
    lease = node.lease - 1 if node.lease else 0
    reply, left = node.reply, node.left
    if reply >= 0 and left and Bug.LEASE_FROM_REPLY not in model.bugs:
        left -= 1
        if not left:
            reply = ABSENT
    return node._replace(lease=lease, reply=reply, left=left)
