"""Counts of the errors of peers of the gRPC listener. Every worker reports them: no library of the extra is needed."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

from proxy.observe.metrics import EXT_AUTHZ_ERRORS
from proxy.observe.snapshot import Labels, Snapshot


class CallError(StrEnum):
    """What was wrong: label cause of ``patgate_ext_authz_errors_total``."""

    PROTOCOL = "protocol"
    NOT_A_CALL = "not_a_call"
    MESSAGE = "message"
    TOO_LONG = "too_long"
    TIMEOUT = "timeout"
    ABANDONED = "abandoned"


class ErrorCounters:
    """The counts of one worker, kept when a reload replaces the listener."""

    def __init__(self) -> None:
        self._errors: Counter[Labels] = Counter()

    def add(self, cause: CallError) -> None:
        """Count an error."""
        self._errors[(cause.value,)] += 1

    def snapshot(self) -> Snapshot:
        """All counts by cause."""
        return Snapshot(counters={EXT_AUTHZ_ERRORS.name: dict(self._errors)})
