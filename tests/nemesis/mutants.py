"""Seeded bugs: each switches off one step of the protocol, in a copy of the product, and a run must find it.

``python -m tests.nemesis --mutants`` runs all of them. A mutant is a replacement of text in one module, so the product
has no hooks for it. If the module changes, ``edited`` fails and names the mutant.

Not every bug of docs/consistency.md can be reached by a run. The model (``tests/model``) finds all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.support.gateway import ROOT

NODE: Final = "proxy/authority/consistency/node.py"
BARRIER: Final = "proxy/authority/consistency/barrier.py"
FOLLOWER: Final = "proxy/authority/consistency/follower.py"
RECORDING: Final = "proxy/store/shared_recording.py"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """A bug: the replacements by module, and how a run provokes it."""

    name: str
    step: str
    """The step of the protocol that is switched off."""
    edits: tuple[tuple[str, str, str], ...]
    """Module, text (exactly once in it), replacement."""
    faults: tuple[str, ...] = ()
    """The kinds of fault that the run needs; empty: none."""
    kinds: dict[str, int] = field(default_factory=lambda: {"suspend": 3, "revoke": 1})


_AT_ONCE: Final = """\
        if number <= self.confirmed:
            return
        wait ="""
_REVEALED: Final = """\
            self._recorded(attempt)
        await self._revealed(number)
"""

MUTANTS: Final = (
    Mutant(
        name="answer at once",
        step="14: a change is answered when every node has it",
        edits=((BARRIER, _AT_ONCE, _AT_ONCE.replace("number <= self.confirmed", "number >= 0")),),
    ),
    Mutant(
        name="no wait without a change",
        step="9: an answer that reveals the state waits, too",
        edits=((RECORDING, _REVEALED, _REVEALED.replace("        await", "            await")),),
        faults=("link cut", "freeze authority"),
        kinds={"twice": 1},
    ),
    Mutant(
        name="acknowledge before raise",
        step="5: read the head, raise the page, then acknowledge",
        edits=(
            (
                FOLLOWER,
                "                self.saw(head.n)\n                self.number = max(self.number, head.n)\n",
                "",
            ),
            (
                FOLLOWER,
                "                node, reached = self._node, self._page.epoch\n",
                "                node, reached = self._node, head.n\n",
            ),
            (
                FOLLOWER,
                "                        self._acknowledged = reached\n",
                "                        self._acknowledged = reached\n                self.saw(head.n)\n"
                "                self.number = max(self.number, head.n)\n",
            ),
        ),
        faults=("proxy slow 60",),
    ),
    Mutant(
        name="renewal without the head",
        step="3: raise the page to the head, only then extend the lease",
        edits=(
            (NODE, "        self._host.saw(seen.n)\n        self._host.joined(", "        self._host.joined("),
            (FOLLOWER, "LOOK_SECONDS: Final = 1.0", "LOOK_SECONDS: Final = 3600.0"),
        ),
        faults=("proxy notify off",),
    ),
    Mutant(
        name="renewal without a row",
        step="2: no row, no lease",
        edits=((NODE, "        if not seen.renewed:\n", "        if not seen.renewed and not self.id:\n"),),
        faults=("proxy cut", "proxy slow 60"),
    ),
    Mutant(
        name="only the last keys",
        step="5, 7: all keys in (page, n] are pushed",
        edits=(
            (
                FOLLOWER,
                "await self._changes_since(since)",
                "await self._changes_since(max(since, self._page.epoch - 1))",
            ),
        ),
        faults=("link cut", "freeze authority"),
    ),
)

JUDGEMENT: Final = "proxy/authority/consistency/judgement.py"
_LISTED: Final = "    listed = {one.history for one in state.acceptances}\n"
_COMPLETE: Final = "    complete = state.remembered and state.n >= page\n"

SCRIPTED: Final = (
    Mutant(
        name="lease from the reply",
        step="1: the lease begins with the time before the renewal",
        edits=((NODE, "        self._page.renew(begun + int(", "        self._page.renew(self._clock() + int("),),
    ),
    Mutant(
        name="fence by number only",
        step="2: the mark of the newest change that the node remembers",
        edits=((JUDGEMENT, _COMPLETE, "    complete = state.n >= page\n"),),
    ),
    Mutant(
        name="no fence",
        step="2: a store without what the node remembers is refused",
        edits=((JUDGEMENT, _LISTED, f"    return _KNOWN\n{_LISTED}"),),
    ),
    Mutant(
        name="answer without the leases' end",
        step="15: a node that does not acknowledge is waited for until its lease is over",
        edits=(
            (
                BARRIER,
                "max(wait.committed_ns + over_after_ns(self.bound), self._not_before_ns)",
                "max(wait.committed_ns + over_after_ns(self.bound) // 4, self._not_before_ns)",
            ),
        ),
    ),
    Mutant(
        name="doubt is success",
        step="11: a commit in doubt is looked for by its mark",
        edits=((RECORDING, "            await self._resolve(attempt, error)\n", "            pass\n"),),
    ),
    Mutant(
        name="doubt is failure",
        step="11: a commit in doubt is looked for by its mark",
        edits=(
            (
                RECORDING,
                "            await self._resolve(attempt, error)\n",
                '            raise StoreUnavailable("nothing was changed") from error\n',
            ),
        ),
    ),
)
"""Bugs that a run finds by luck only. Each is found by a scenario: ``scenarios.SCENARIOS``."""


def edited(mutant: Mutant) -> dict[str, str]:
    """The modules with the bug, by their paths. Fails if a text is not there, or not only once."""
    found: dict[str, str] = {}
    for module, before, after in mutant.edits:
        source = found.get(module) or (ROOT / module).read_text()
        count = source.count(before)
        assert count == 1, f"mutant {mutant.name!r}: its text is {count} times in {module}"
        found[module] = source.replace(before, after)
    return found


def patched(mutant: Mutant, directory: Path) -> Path:
    """A copy of the package in ``directory``, with the bug; what is compiled already is copied, too."""
    # Stamps are kept, so that compiled modules stay valid. A changed module gets another size or stamp.
    shutil.copytree(ROOT / "proxy", directory / "proxy", copy_function=shutil.copy2)
    for module, source in edited(mutant).items():
        (directory / module).write_text(source)
    return directory


@contextmanager
def tree(mutant: Mutant) -> Iterator[Path]:
    """A temporary checkout with the bug."""
    with TemporaryDirectory(prefix="patgate-mutant-") as name:
        yield patched(mutant, Path(name))
