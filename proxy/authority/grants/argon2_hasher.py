"""Argon2id hashing in a bounded thread pool, never on the event loop.

Rules of this module:
1. At most ``threads`` computations run and at most ``queue`` wait; further ones are refused at once with
   ``AuthorityOverloaded``. Memory for hashing is bounded by ``threads`` x ``memory_kib``.
2. A cancelled caller does not free its place early: the place is free when the thread is.
3. A stored hash that cannot be parsed matches no token.
4. Argon2 protects a leaked store, not weak secrets: the secret has 190 bits. So the parameters are the smallest that
   OWASP recommends, and frequently used tokens are verified without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import Argon2Error, InvalidHashError

from proxy.core.errors import AuthorityOverloaded
from proxy.observe.metrics import HashOutcome
from proxy.settings.model import Argon2

THREADS: Final = 2
QUEUE: Final = 64

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class HashParameters:
    """Cost of one computation: passes, KiB of memory, lanes (RFC 9106; OWASP's minimum for argon2id)."""

    time_cost: int = 2
    memory_kib: int = 19_456
    parallelism: int = 1


class Argon2Hasher:
    """``services.secret_hasher.SecretHasher`` over a thread pool. ``counted`` is called with every outcome."""

    def __init__(
        self,
        parameters: HashParameters,
        *,
        threads: int = THREADS,
        queue: int = QUEUE,
        counted: Callable[[HashOutcome], None],
    ) -> None:
        self._hasher = PasswordHasher(
            time_cost=parameters.time_cost,
            memory_cost=parameters.memory_kib,
            parallelism=parameters.parallelism,
            type=Type.ID,
        )
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="argon2")
        self._places = threads + queue
        self._pending = 0
        self._counted = counted

    @property
    def pending(self) -> int:
        """Number of computations that run or wait."""
        return self._pending

    async def hash(self, token: str) -> str:
        """The encoded argon2id hash of ``token``. Raises AuthorityOverloaded."""
        encoded = await self._run(lambda: self._hasher.hash(token))
        self._counted(HashOutcome.HASHED)
        return encoded

    async def verify(self, hash: str, token: str) -> bool:
        """Whether ``hash`` is a hash of ``token``. Raises AuthorityOverloaded."""
        matched = await self._run(lambda: self._matches(hash, token))
        self._counted(HashOutcome.MATCHED if matched else HashOutcome.MISMATCHED)
        return matched

    def close(self) -> None:
        """Let running computations end in their threads and cancel waiting ones."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _matches(self, encoded: str, token: str) -> bool:
        try:
            return self._hasher.verify(encoded, token)
        except (Argon2Error, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        if self._pending >= self._places:
            self._counted(HashOutcome.OVERLOADED)
            raise AuthorityOverloaded("the queue for hashing secrets is full")
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        future.add_done_callback(self._free)
        # Shielded: cancelling the caller must not mark the place free while its thread still computes.
        return await asyncio.shield(future)

    def _free(self, _future: object) -> None:
        self._pending -= 1


def build_hasher(chosen: Argon2, counted: Callable[[HashOutcome], None]) -> Argon2Hasher:
    """The hasher of these settings."""
    return Argon2Hasher(
        HashParameters(time_cost=chosen.iterations, memory_kib=chosen.memory // 1024, parallelism=chosen.parallelism),
        threads=chosen.threads,
        queue=chosen.queue,
        counted=counted,
    )
