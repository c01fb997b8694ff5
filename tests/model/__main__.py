"""``python -m tests.model [--deep] [--bugs]``: explore every configuration, or show the trace of every seeded bug.

Prints one line for each configuration. Exits 1 if an invariant is broken without a seeded bug, or is not with one.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from tests.model.catalogue import DEEP, SEEDED, SHORT
from tests.model.explore import explore


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--deep", action="store_true", help="also what takes minutes: part of make soak")
    parser.add_argument("--bugs", action="store_true", help="only the seeded bugs, each with its shortest trace")
    asked = parser.parse_args()
    wrong = 0
    for name, model in ({} if asked.bugs else DEEP if asked.deep else SHORT).items():
        found = explore(model)
        wrong += found.broken is not None
        print(f"{name}: {found}", flush=True)
    for bug, seeded in SEEDED.items():
        found = explore(replace(seeded.model, bugs=frozenset({bug})), aim=seeded.breaks, limit=120_000)
        wrong += found.broken is not seeded.breaks
        if asked.bugs or found.broken is not seeded.breaks:
            print(f"\n{bug.name.lower()} (rule {bug.rule}): {bug.words}\n{found}", flush=True)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
