"""The table of credential kinds is the only place that tells kinds apart."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.core.kinds import KINDS, OF_ORGS, OF_USERS, PATTERN, WORDS, Kind
from proxy.core.model import ACTOR_KINDS

PACKAGE = Path(__file__).resolve().parents[3] / "proxy"
ISSUERS = {
    "core/kinds.py",
    "services/caller.py",
    "services/tokens/service.py",
    "services/keys/service.py",
    "control/api/tokens.py",
    "control/api/keys.py",
}
"""The table, the names of its entities, and the verbs and operations that are about one kind."""


def test_every_kind_has_a_row_an_owner_and_a_reach() -> None:
    assert set(KINDS) == set(Kind)
    assert {*OF_USERS, *OF_ORGS} == set(Kind)
    assert not {*OF_USERS} & {*OF_ORGS}
    assert all(row.reaches for row in KINDS.values())


def test_words_are_those_of_prefixes_and_of_actors() -> None:
    assert tuple(kind.value for kind in Kind) == WORDS
    assert all(re.fullmatch(f"(?:{PATTERN})", word) for word in WORDS)
    assert ("person", *WORDS, "system") == ACTOR_KINDS


def test_no_other_module_branches_on_a_kind() -> None:
    branches = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\bKind\.(?:PAT|KEY)\b|\(\??:?pat\|key\)|\"pat\", \"key\"", path.read_text())
    }
    assert branches == ISSUERS
