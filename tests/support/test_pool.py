"""A gateway that several test files borrow behaves like a new one for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateway import Patgate
from tests.support.pool import Pool
from tests.support.recorder import Recorder

USER = "ann@pool.example"


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool of this file's own: which gateway a borrower gets depends on those that other files have returned."""
    pool = Pool(lambda: tmp_path_factory.mktemp("pool"))
    yield pool
    pool.end()


def config(backend: Recorder, prefix: str, workers: int) -> dict[str, object]:
    return {
        "workers": workers,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"editor": ["things:*"]},
        "routes": [{"path": f"/{prefix}/**", "upstream": "app", "access": "public"}],
        "log": {"access": "all"},
    }


def status(node: Patgate, target: str) -> int:
    with node.connect() as connection:
        return connection.request("GET", target).status


def test_a_borrower_has_its_own_configuration_no_users_and_a_log_of_its_own(gateways: Pool, backend: Recorder) -> None:
    with gateways.lend(config(backend, "first", 1)) as node:
        first = node.process.pid
        node.add_user(USER, "editor")
        assert (status(node, "/first/a"), status(node, "/second/a")) == (200, 403)
    with gateways.lend(config(backend, "second", 2)) as node:
        assert node.process.pid == first
        assert len(node.all_workers()) == 2
        assert (status(node, "/first/a"), status(node, "/second/a")) == (403, 200)
        assert "/first/**" not in node.log
        with node.control_socket() as control:
            assert control.call("GET", "/users")["items"] == []
        node.add_user(USER, "editor")


def test_a_gateway_whose_borrower_failed_is_ended(gateways: Pool, backend: Recorder) -> None:
    with pytest.raises(ZeroDivisionError), gateways.lend(config(backend, "first", 1)) as node:
        process = node.process
        raise ZeroDivisionError
    assert process.exit_code is not None


def test_a_gateway_that_was_lent_while_a_test_failed_is_ended(gateways: Pool, backend: Recorder) -> None:
    with gateways.lend(config(backend, "first", 1)) as node:
        process = node.process
        gateways.damaged()  # as the plugin calls it for a failed report
    assert process.exit_code is not None


def test_a_gateway_that_cannot_be_given_back_is_ended(gateways: Pool, backend: Recorder) -> None:
    with pytest.raises(OSError, match=r"."), gateways.lend(config(backend, "first", 1)) as node:
        process = node.process
        node.data /= "nowhere"  # its socket itself would be bound again if it was removed
    assert process.exit_code is not None
