"""The values of audit log filters, and the parser for their times.

The command line imports this module and loads no store, so nothing here may import SQLAlchemy.
"""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Final

from proxy.core.errors import Invalid
from proxy.observe.metrics import Outcome
from proxy.settings.values import parse_duration
from proxy.store.records import LEVEL_ACCOUNT, LEVEL_ORGANISATION

LEVELS: Final = (LEVEL_ACCOUNT, LEVEL_ORGANISATION)
OUTCOMES: Final = ("done", *(outcome.value for outcome in Outcome))
NOW: Final = "now"
"""Stands for the number of the newest event."""

_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)


def read_moment(text: str | None, now: float, field: str) -> float | None:
    """The time (unix seconds) of an RFC 3339 text, or of a duration such as ``24h`` before ``now``. Raises Invalid."""
    if text is None:
        return None
    try:
        if _MOMENT.fullmatch(text):
            return datetime.fromisoformat(text.upper()).timestamp()
        moment = now - parse_duration(text)
    except (ValueError, OverflowError):
        moment = math.inf
    if not math.isfinite(moment):
        raise Invalid(field, "a duration such as 24h or 30d, or a time such as 2026-01-31T12:00:00Z")
    return moment
