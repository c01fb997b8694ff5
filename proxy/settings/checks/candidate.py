"""What a rule gets and what it yields."""

from dataclasses import dataclass

from proxy.settings.model import Settings
from proxy.settings.problems import Loc


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleViolation:
    """A broken rule: the setting and the message; ``other`` is the setting that it conflicts with, if any."""

    loc: Loc
    message: str
    other: Loc | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """The settings to check, and the places of the invalid values that were cut out."""

    settings: Settings
    holes: frozenset[Loc] = frozenset()
    upstreams: frozenset[str] | None = None
    """All names of upstreams, including invalid ones; None if the names are unknown."""

    def sound(self, loc: Loc) -> bool:
        """Whether the value at this place is the operator's: no hole at, above or below it."""
        return not any(hole[: len(loc)] == loc or loc[: len(hole)] == hole for hole in self.holes)
