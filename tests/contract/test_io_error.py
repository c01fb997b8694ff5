"""A change whose write the kernel refuses is refused as a whole, and the next change works."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy.core.errors import StoreUnavailable
from proxy.core.model import Grant
from tests.contract.kit import ADMIN, opened
from tests.support.dialects import ON_SQLITE

pytestmark = ON_SQLITE


@contextmanager
def _no_file_grows_beyond(size: int) -> Iterator[None]:
    """RLIMIT_FSIZE: ``write`` fails with EFBIG (Python ignores SIGXFSZ), as it would with ENOSPC on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 4096, 8192, 20_000, 40_000])
async def test_a_refused_write_undoes_the_change_and_heals_without_a_restart(tmp_path: Path, room: int) -> None:
    acknowledged: list[str] = []
    async with opened(tmp_path) as kit:
        await kit.basics()
        token = await kit.mint("ann@example.org", "t")
        refused = 0
        with _no_file_grows_beyond((tmp_path / "patgate.db-wal").stat().st_size + room):
            for number in range(20):
                email = f"u{number}@example.org"
                try:
                    await kit.users.add(ADMIN, email, "viewer")
                    acknowledged.append(email)
                except StoreUnavailable:
                    refused += 1
                assert isinstance(await kit.resolve(token.view.prefix), Grant), "existing tokens keep working"
        assert refused > 0
        await kit.users.add(ADMIN, "after@example.org", "viewer")
        acknowledged.append("after@example.org")
        epoch = await kit.intact()
        assert {view.email for view in (await kit.users.list(ADMIN)).items} == {"ann@example.org", *acknowledged}
        assert kit.announced[-1][0] == epoch
    async with opened(tmp_path) as kit:
        assert await kit.intact() == epoch
        assert {view.email for view in (await kit.users.list(ADMIN)).items} == {"ann@example.org", *acknowledged}
