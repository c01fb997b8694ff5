"""The workload that every peer gets: paths and tokens."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from proxy.core.kinds import Kind
from proxy.core.token import TokenFormat

PATHS = 10_000
ENTITIES = (
    "things",
    "channels",
    "devices",
    "reports",
    "invoices",
    "projects",
    "members",
    "documents",
    "orders",
    "alerts",
)
BRAND = "acme"


def all_paths(count: int = PATHS) -> tuple[str, ...]:
    """``count`` different paths below /v1: items with an id, and one list for each entity; the same in every run."""
    rng = random.Random(20)
    paths: dict[str, None] = {f"/v1/{entity}": None for entity in ENTITIES}
    while len(paths) < count:
        entity = rng.choice(ENTITIES)
        paths[f"/v1/{entity}/{rng.getrandbits(48):012x}"] = None
    return tuple(paths)


def mint(count: int) -> tuple[str, ...]:
    """``count`` tokens of patgate's own format, which the other peers take as static keys."""
    token_format = TokenFormat(BRAND)
    return tuple(token_format.mint(Kind.PAT).token for _ in range(count))


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Tokens and paths, and the files from which the load generator reads them, one a line."""

    tokens: tuple[str, ...]
    tokens_file: Path
    paths_file: Path

    def narrowed(self, directory: Path, count: int) -> Self:
        """The same workload with only the first ``count`` tokens, whose file is written into ``directory``."""
        tokens_file = directory / "tokens.txt"
        tokens_file.write_text("".join(f"{token}\n" for token in self.tokens[:count]))
        return replace(self, tokens=self.tokens[:count], tokens_file=tokens_file)


def write_workload(directory: Path, tokens: tuple[str, ...]) -> Workload:
    """Write the files of the workload into ``directory``; they are secrets of a throw-away store."""
    tokens_file, paths_file = directory / "tokens.txt", directory / "paths.txt"
    tokens_file.write_text("".join(f"{token}\n" for token in tokens))
    paths_file.write_text("".join(f"{path}\n" for path in all_paths()))
    return Workload(tokens=tokens, tokens_file=tokens_file, paths_file=paths_file)
