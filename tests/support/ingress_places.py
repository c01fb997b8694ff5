"""What docs/ingress.md says to add to each file of config/ for a credential in a header of one's own."""

from __future__ import annotations

import re
from typing import Final

from tests.e2e.ingress.matrix import PAGE
from tests.support.ingress_claims import CONFIG

HEADER: Final = "PRIVATE-TOKEN"
"""The header of the page's example."""
_ROW: Final = re.compile(r"^\| `((?:ingress|kubernetes)/[^`]+)` \| (.+) \|$", re.MULTILINE)
_KNOWN: Final = re.compile(r"(?i)x-api-key")


def rows() -> dict[str, str]:
    """For each file of config/ in the page's table, what it says to add."""
    _, _, after = PAGE.read_text("utf-8").partition("**A credential in another header")
    table = after.partition("\n\n|")[2].partition("\n\n")[0]
    return dict(_ROW.findall(table))


def changed(name: str, said: str) -> str:
    """The file ``name`` of config/ with the addition that the page names in ``said``."""
    text = (CONFIG / name).read_text("utf-8")
    if said.startswith("nothing"):
        return text
    added = said.split("`")[1]
    lines = []
    found = 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        if _KNOWN.search(line) is None:
            continue
        if "[" in line:
            lines[-1] = _KNOWN.sub(lambda known: f"{known[0]}, {added}", line)
        elif "list" in said:
            # A list of one entry a line, of what patgate gets.
            if re.search(rf"(?im)^ *- {added}$", text) is None:
                lines.append(_KNOWN.sub(added, line))
        else:
            lines.append(line[: len(line) - len(line.lstrip())] + added + "\n")
        found += 1
    assert found == 1 + said.count(" and in "), f"config/{name}: {found} lines for X-Api-Key"
    return "".join(lines)
