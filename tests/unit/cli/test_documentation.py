"""docs/cli.md names every command and every option, and no other command."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from proxy.cli.main import patgate

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "cli.md").read_text("utf-8")
COMMON = {"--config", "--json", "--help", "--version"}


def leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that is not a group, by its full name."""
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for sub in command.list_commands(context):
            found = command.get_command(context, sub)
            assert found is not None
            yield from leaves(found, f"{name} {sub}")


LEAVES = dict(leaves(patgate, "patgate"))


def section(name: str) -> str:
    """The text of one command's section."""
    found = re.search(rf"^### `{re.escape(name)}`$(.*?)(?=^##|\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/cli.md has no section on {name}"
    return found[1]


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_a_section_that_names_its_options(name: str) -> None:
    text = section(name)
    for parameter in LEAVES[name].params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            for option in set(parameter.opts) - COMMON:
                assert f"`{option}" in text, f"{name}: {option}"


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_takes_config_and_json_and_has_a_help_text(name: str) -> None:
    command = LEAVES[name]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--config", "--json"} <= options
    assert command.help


def test_no_section_is_about_a_command_that_does_not_exist() -> None:
    assert set(re.findall(r"^### `(patgate [^`]+)`$", DOCUMENT, re.MULTILINE)) == set(LEAVES)
