"""``make fuzz``: fuzzes every target for a while, guided by coverage. A finding is printed as a seed to commit."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.fuzz.table import TARGETS
from tests.fuzz.targets.target import Target

BUILD: Final = Path(__file__).resolve().parents[2] / "build" / "fuzz"
_RUNS: Final = re.compile(r"^stat::number_of_executed_units:\s+(\d+)$", re.MULTILINE)
_COVERED: Final = re.compile(r"^#\d+\s.*\bcov: (\d+) .*\bcorp: (\d+)", re.MULTILINE)
"""A compiled target has no branches to count, and without any interpreted code it has no such line."""
_ENGINE_NOISE: Final = re.compile(r"^(?:INFO|#\d|MS:|\s+NEW_FUNC|==\d+==|SUMMARY|Base64|artifact_prefix|0x|Dictionary)")
SLOW_SECONDS: Final = 20
"""For one input: if it takes longer, something is not linear."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0: another one each time")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS) + "; all if none is named")
    options = parser.parse_args()
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"there is no target {min(unknown)}")
    names = options.targets or list(TARGETS)
    found = [name for name in names if not fuzz(TARGETS[name], seconds=options.seconds, seed=options.seed)]
    if found:
        print(f"findings in {', '.join(found)}: add the input to the target's seeds, then mend what it shows")
    return len(found) > 0


def fuzz(target: Target, *, seconds: int, seed: int) -> bool:
    """Run one target; prints a finding and returns False."""
    place = BUILD / target.name
    corpus = place / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    dictionary = place / "pieces.dict"
    dictionary.write_text("".join(f'"{escaped(piece)}"\n' for piece in target.pieces))
    for old in place.glob("found-*"):
        old.unlink()
    ended = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz.engine", target.name,
            f"-max_total_time={seconds}", f"-timeout={SLOW_SECONDS}", f"-seed={seed}", f"-dict={dictionary}",
            f"-artifact_prefix={place}/found-", "-print_final_stats=1", corpus,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )  # fmt: skip
    (place / "log").write_text(ended.stdout)
    counted = _RUNS.search(ended.stdout)
    runs = int(counted[1]) if counted else 0
    covered, kept = (_COVERED.findall(ended.stdout) or [("0", "0")])[-1]
    inputs = sorted(place.glob("found-*"))
    clean = ended.returncode == 0 and not inputs and runs > 0
    print(
        f"{target.name:15} {runs:>9} inputs, {covered:>5} branches, {kept:>5} kept: {'clean' if clean else 'FOUND'}",
        flush=True,
    )
    if not clean:
        lines = [line for line in ended.stdout.splitlines() if not _ENGINE_NOISE.match(line)]
        print("\n".join(lines[-40:]))
        for path in inputs:
            print(f"    {path.read_bytes()!r},")
    return clean


def escaped(piece: bytes) -> str:
    """A piece in the format of libFuzzer's dictionaries."""
    return "".join(chr(byte) if 0x20 < byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02X}" for byte in piece)


if __name__ == "__main__":
    sys.exit(main())
