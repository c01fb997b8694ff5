"""Which scenario finds which seeded bug of ``mutants.SCRIPTED``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from tests.nemesis import failover, leases

SCENARIOS: Final[Mapping[str, Callable[..., None]]] = {
    "lease from the reply": partial(leases.late_reply, attempts=6),
    "fence by number only": failover.overtaken_standby,
}
"""Functions of a directory and a ``tree``; with the bug they fail and say ``failover.ACCEPTED``."""
