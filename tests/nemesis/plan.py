"""What a client is started with, and what it reports while it runs; both are JSON documents."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class Plan:
    """What a client does."""

    name: str
    directory: str
    """For its record."""
    nodes: list[tuple[str, str]]
    """The paths of each node's forward-auth and control sockets."""
    seed: int
    changers: int = 4
    connections: int = 4
    """To each node."""
    rate: float = 0.0
    """Decisions a second; 0: as many as the nodes answer."""
    pause: float = 0.0
    """Seconds between two rounds of a changer."""
    patience: tuple[float, ...] = (5.0, 30.0)
    """Seconds that a changer waits for an answer, one of these."""
    kinds: dict[str, int] = field(
        default_factory=lambda: {"revoke": 6, "twice": 1, "rotate": 3, "scope": 2, "suspend": 2, "role": 3}
    )
    """The weights of the rounds."""


@dataclass(kw_only=True, slots=True)
class Progress:
    """So far: decisions, acknowledged changes, and the same by kind; answers of 200 at each node."""

    decisions: int
    changes: int
    kinds: dict[str, int]
    allowed: list[int]
