"""Filling the audit log as after years of use: a valid chain (``store.audit.chain``) of millions of events.

Nine in ten events are requests (writes, and reads that were refused), the others are changes: the minting of each
token, as far as the events suffice. A few tokens are used by machines and have most of the events.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from bench.datasets.aged_store import YEARS, Filled, Known, bulk, insert, without_indexes
from proxy.store.audit.chain import event_hash
from proxy.store.records import LEVEL_ACCOUNT, LEVEL_ORGANISATION

_CHANGE_SHARE: Final = 10
_REFUSED_SHARE: Final = 20
_SAMPLES: Final = 1000
_CHANGES: Final = 100_000
"""The number of rows that the change feed keeps."""
_OPERATIONS: Final = (("create", "POST"), ("update", "PATCH"), ("delete", "DELETE"), ("publish", "POST"))
_REASONS: Final = ("scope_insufficient", "role_insufficient")
_COLUMNS: Final = (
    "n at level org_id actor_kind actor_id actor_name action target_kind target_id target_name outcome reason address "
    "request_id decision_id epoch details user_id prev_hash hash"
)

_NAMES: Final = tuple(_COLUMNS.split())
_DECISION: Final = _NAMES.index("decision_id")


@dataclass(kw_only=True, slots=True)
class Logged:
    """The contents of the log that measurements need."""

    events: int
    busy: list[Known] = field(default_factory=list)
    """Tokens with many events, the busiest first."""
    some: list[Known] = field(default_factory=list)
    """Tokens drawn at random, most of which have few events."""
    decisions: list[str] = field(default_factory=list)
    """Ids of decisions in the log."""


def fill_log(filled: Filled, *, events: int, seed: int) -> Logged:
    """Add this many events, and the matching change feed, to a filled store."""
    rng = random.Random(seed)
    made = _Log(filled, rng, events)
    with (
        closing(bulk(filled.database)) as connection,
        without_indexes(connection, ("audit_events",)),
    ):
        insert(connection, "audit_events", _COLUMNS, made.rows())
        chain = (1, 0, "", made.number, made.hash)
        connection.execute("DELETE FROM audit_chain")  # the row of the empty log
        insert(connection, "audit_chain", "id base_n base_hash head_n head_hash", [chain])
        _changes(connection, made.epoch, filled.now)
    some = rng.sample(filled.tokens, min(_SAMPLES, len(filled.tokens)))
    return Logged(events=made.number, busy=made.busy[:_SAMPLES], some=some, decisions=made.decisions)


def _changes(connection: sqlite3.Connection, epoch: int, now: float) -> None:
    first = max(1, epoch - _CHANGES)
    rows = ((number, json.dumps([f"token:{number}"]), now) for number in range(first, epoch + 1))
    insert(connection, "changes", "epoch touched at", rows)


class _Log:
    """The rows, and the head of the chain."""

    def __init__(self, filled: Filled, rng: random.Random, events: int) -> None:
        self._filled, self._rng, self._events = filled, rng, events
        self.number, self.hash, self.epoch = 0, "", 0
        self.busy = rng.sample(filled.tokens, len(filled.tokens) // 20 or 1)
        self.decisions: list[str] = []

    def rows(self) -> Iterator[Sequence[Any]]:
        tokens, filled = self._filled.tokens, self._filled
        began, step = filled.now - YEARS, YEARS / self._events
        keep = max(1, self._events // _SAMPLES)
        for number in range(1, self._events + 1):
            self.number, at = number, began + number * step
            made = number // _CHANGE_SHARE
            if number % _CHANGE_SHARE == 0 and made < len(tokens):
                yield self._minting(tokens[made], at)
            else:
                row = self._request(at)
                if number % keep == 1:
                    self.decisions.append(row[_DECISION])
                yield row

    def _minting(self, token: Known, at: float) -> Sequence[Any]:
        self.epoch += 1
        values = {
            "n": self.number,
            "at": at,
            "level": LEVEL_ORGANISATION if token.org_id else LEVEL_ACCOUNT,
            "org_id": token.org_id,
            "actor_kind": "person" if token.user_id else "system",
            "actor_id": token.user_id or "control-socket",
            "actor_name": token.user_id or "control-socket",
            "action": f"account.{token.kind}.mint",
            "target_kind": "token",
            "target_id": token.id,
            "target_name": token.name,
            "outcome": "done",
            "reason": "",
            "address": "",
            "request_id": "",
            "decision_id": "",
            "epoch": self.epoch,
            "details": {"expires_at": None, "prefix": f"acme_{token.kind}_{token.id}", "scopes": None},
            "user_id": token.user_id,
        }
        before, self.hash = self.hash, event_hash(self.hash, values)
        row = {**values, "details": json.dumps(values["details"]), "prev_hash": before, "hash": self.hash}
        return [row[name] for name in _NAMES]

    def _request(self, at: float) -> Sequence[Any]:
        random_ = self._rng.random
        # Half of the requests are of busy tokens, the busiest first.
        if random_() < 0.5:
            token = self.busy[int(len(self.busy) * random_() ** 4)]
        else:
            token = self._filled.tokens[int(len(self._filled.tokens) * random_())]
        if random_() < 1 / _REFUSED_SHARE:
            operation, method, outcome, status = "read", "GET", "refused", 403
            reason = _REASONS[int(len(_REASONS) * random_())]
        else:
            operation, method = _OPERATIONS[int(len(_OPERATIONS) * random_())]
            outcome, status, reason = "allowed", 200, ""
        level = LEVEL_ORGANISATION if token.org_id else LEVEL_ACCOUNT
        bits = self._rng.getrandbits(104)
        thing, decision, address = f"{bits & 0xFFFFFFFFFF:010x}", f"{bits >> 40:016x}", f"192.0.2.{bits & 255}"
        user = f',"user_id":"{token.user_id}"' if token.user_id else ""
        # The text that ``event_hash`` hashes, in a tenth of the time: the unit test verifies a chain of both.
        text = (
            f'{self.hash}\n{{"action":"request.{operation}","actor_id":"{token.id}","actor_kind":"{token.kind}",'
            f'"actor_name":"{token.name}","address":"{address}","at":{at!r},"decision_id":"{decision}","details":'
            f'{{"method":"{method}","path":"/v1/things/{thing}","status":{status}}},"epoch":0,"level":"{level}",'
            f'"n":{self.number},"org_id":"{token.org_id}","outcome":"{outcome}","reason":"{reason}",'
            f'"request_id":"{decision}","target_id":"things/{thing}","target_kind":"route",'
            f'"target_name":"/v1/{{entity}}/{{id}}"{user}}}'
        )
        before, self.hash = self.hash, sha256(text.encode("ascii")).hexdigest()
        details = f'{{"method": "{method}", "path": "/v1/things/{thing}", "status": {status}}}'
        return (
            self.number, at, level, token.org_id, token.kind, token.id, token.name, f"request.{operation}", "route",
            f"things/{thing}", "/v1/{entity}/{id}", outcome, reason, address, decision, decision, 0, details,
            token.user_id, before, self.hash,
        )  # fmt: skip
