"""The seeded bugs: each switches off one step of the protocol."""

from __future__ import annotations

from enum import Enum


class Bug(Enum):
    """The rule, and what is done instead. The first fourteen are those of the design."""

    LEASE_FROM_REPLY = 1, "the lease is timed from the reply of the renewal, not from before its request"
    ANSWER_AT_ONCE = 14, "the answer does not wait for the nodes"
    ACKNOWLEDGE_FIRST = 5, "a node acknowledges before it raises its page"
    JOIN_IN_ONE_TRANSACTION = 4, "the row is inserted and the first renewal read in one transaction"
    RENEWAL_NOT_DURABLE = 1, "renewals are committed asynchronously"
    REAP_BY_ROW_TIME = 15, "a row is deleted when the database's clock says that it is old"
    REPLY_WITHOUT_HEAD = 1, "a renewal does not return the head"
    RENEW_WITHOUT_ROW = 2, "a renewal that finds no row extends the lease all the same"
    NO_LOCK = 8, "a change reads the head without locking it"
    REPEATABLE_READ = 8, "the transaction's snapshot is older than its lock"
    OWN_KEYS_ONLY = 5, "the service announces its own change, with its own keys"
    NOTHING_TO_DO_AT_ONCE = 9, "a call with nothing to do answers without a wait"
    FENCE_BY_NUMBER = 2, "a node compares its number with the store's, but neither mark nor history"
    SHARED_ID = 4, "two nodes have one id (a cloned disk) and so one row"

    NO_FENCE = 2, "a node follows every history that it meets"
    LEASE_BEFORE_PAGE = 3, "the lease is extended before the page is raised"
    OWN_LEASE = 3, "a node uses its own lease although the bound is smaller"
    PAGE_SET = 3, "the page is set to the head of a late reply, not raised to it"
    JOIN_NOT_DURABLE = 4, "the row is inserted asynchronously"
    NOTIFY_BELIEVED = 5, "a number in a notification is taken for the head"
    PUSH_WITHOUT_KEYS_BETWEEN = 7, "after a gap a node pushes the keys of the last change only"
    LOOKUP_LEAVES_PAGE = 7, "a lookup answers from a newer snapshot than the page, and does not raise it"
    LOOKUP_UNCOMPARED = 2, "a lookup through the pool does not compare the history of the database that it reaches"
    NUMBER_BEFORE_COMMIT = 10, "the page is raised when a change has been executed, before it is committed"
    CHANGE_NOT_DURABLE = 10, "changes are committed asynchronously"
    DOUBT_IS_SUCCESS = 11, "a COMMIT without a clear answer is taken for success"
    RESOLVED_WITHOUT_LOCK = 11, "the mark is looked for without the lock, so the old transaction may still commit"
    RESOLVED_AT_ONCE = 11, "a change that was found by its mark is answered without a wait"
    TIMED_BEFORE_COMMIT = 12, "the wait is timed from before COMMIT"
    ROWS_OF_THE_TRANSACTION = 13, "the wait is for the rows that the change's own transaction saw"
    OWN_NODE_ONLY = 14, "the wait is for the page of the own node only"
    POLL_UNCOMPARED = 13, "the rows are read without a comparison of the history of the database that the pool reaches"
    NO_MARGIN = 15, "the wait ends after the bound, without the margin for slow clocks"
    BOUND_FROM_MEMORY = 15, "the wait uses the bound that the node remembers, not that of its transaction"
    REAP_UNCOMPARED = 15, "a row is deleted although it was renewed since it was seen"
    REAP_AFTER_A_LATE_LOOK = 15, "a row is deleted when the wait ends, although it was seen less than a bound before"
    REAP_BY_OLD_BOUND = 15, "a row is deleted by the bound of the change, although the bound had been raised when seen"
    BOUND_LOWERED = 15, "the bound is lowered like any setting"
    WAIT_FOR_THE_DATABASE = 16, "the wait does not end while the database is away"
    WAIT_FOR_THE_ROW = 15, "the wait does not end while a row that was renewed has not acknowledged"
    ROW_BEFORE_LEASE = 19, "a node that stops deletes its row first and ends its lease then"
    WAIT_OVER_A_NEW_HISTORY = 16, "a call goes on waiting, and answers, after its node has met another history"
    ACCEPTED_AT_ONCE = 20, "a history is accepted while nodes that it does not know may still hold leases"
    PAGE_KEPT = 20, "after a new history was accepted, page and caches are kept"

    def __init__(self, rule: int, words: str) -> None:
        self.rule = rule
        self.words = words
