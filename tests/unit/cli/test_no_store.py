"""Commands on a data directory without a store, which is usually a wrong ``data_dir``."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import click
import pytest

from proxy.core.errors import NoStore
from proxy.supervisor import datadir
from tests.unit.cli.running import Desk
from tests.unit.cli.test_documentation import LEAVES

MAKE_ONE = {"patgate user add": ["a@example.org", "--role", "admin"], "patgate org add": ["lab"]}
MAKE_ONE["patgate role set"] = ["auditor", "things:read"]
#: These use no store, or only files and other servers; ``serve`` and ``quickstart`` create a store.
NO_CLIENTS = {
    "patgate serve",
    "patgate quickstart",
    "patgate check",
    "patgate doctor",
    "patgate health",
    "patgate whoami",
    "patgate config schema",
    "patgate token pattern",
}
NEEDED = {"patgate token create": ["--user", "a@example.org", "--name", "ci"]}
NEEDED["patgate token delete"] = ["abcdefghijkl"]
NEEDED["patgate audit"] = []
NEEDED["patgate nodes accept"] = ["--yes"]
NEEDED["patgate key create"] = ["--org", "lab", "--name", "ci", "--role", "viewer"]
NEEDED["patgate key attach"] = ["abcdefghijkl", "lab=things:read"]
NEEDED["patgate store copy"] = ["--to", "postgresql://patgate@127.0.0.1:1/patgate"]
VALUES = {"email": "a@example.org", "role": "admin", "org": "lab", "name": "x", "permissions": "things:read"}


def arguments(name: str) -> list[str]:
    """The command with a value for each argument that it needs."""
    words = name.split()[1:]
    if name in NEEDED:
        return [*words, *NEEDED[name]]
    for parameter in LEAVES[name].params:
        if parameter.required:
            value = VALUES.get(str(parameter.name), "lab")
            words += [parameter.opts[0], value] if isinstance(parameter, click.Option) else [value]
    return words


@pytest.mark.parametrize("name", sorted(set(LEAVES) - NO_CLIENTS - set(MAKE_ONE)))
@pytest.mark.parametrize("there", [False, True], ids=["no directory", "another directory"])
def test_a_command_that_creates_no_store_refuses_a_directory_without_one(name: str, there: bool, bare: Desk) -> None:
    """A new command is tested here without a change."""
    if there:
        bare.data.mkdir()
        bare.data.chmod(0o755)
        (bare.data / "lock").write_text("of another program")
    sentence = bare.refused(*arguments(name))
    assert "no store" in sentence and str(bare.data) in sentence and "data_dir" in sentence
    if there:
        assert os.listdir(bare.data) == ["lock"]
        assert (bare.data / "lock").read_text() == "of another program"
        assert bare.data.stat().st_mode & 0o777 == 0o755
    else:
        assert not bare.data.exists()


@pytest.mark.parametrize("name", sorted(MAKE_ONE))
def test_a_command_that_adds_the_first_things_creates_the_store(name: str, bare: Desk) -> None:
    bare.document(*name.split()[1:], *MAKE_ONE[name])
    assert (bare.data / "patgate.db").exists()
    assert bare.document("token", "list") == []


def test_a_command_waits_for_a_gateway_that_is_creating_its_store(tmp_path: Path) -> None:
    database = tmp_path / "patgate.db"
    with pytest.raises(NoStore):
        datadir.require_store(tmp_path, database)
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        datadir.require_store(tmp_path, database)
    with pytest.raises(NoStore):
        datadir.require_store(tmp_path, database)
