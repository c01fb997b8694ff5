from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.differential.campaign import Campaign, campaign


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    """Four servers, a gateway and its tokens, shared by all tests of this directory."""
    with campaign(tmp_path_factory.mktemp("differential")) as found:
        yield found
