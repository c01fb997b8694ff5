"""The vocabulary of a report: each check is fine, found a problem, or was skipped."""

from dataclasses import dataclass
from enum import StrEnum


class CheckVerdict(StrEnum):
    """The result of a check."""

    OK = "ok"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The result of one check: what was seen, and what to do about a problem or to run a skipped check."""

    check: str
    verdict: CheckVerdict
    seen: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """The JSON form."""
        return {"check": self.check, "verdict": self.verdict.value, "seen": self.seen, "advice": self.advice}


def ok(check: str, seen: str) -> Finding:
    """A check that found no problem."""
    return Finding(check=check, verdict=CheckVerdict.OK, seen=seen)


def problem(check: str, seen: str, advice: str) -> Finding:
    """A check that found a problem."""
    return Finding(check=check, verdict=CheckVerdict.PROBLEM, seen=seen, advice=advice)


def skipped(check: str, why: str, advice: str = "") -> Finding:
    """A check that could not be made."""
    return Finding(check=check, verdict=CheckVerdict.SKIPPED, seen=why, advice=advice)
