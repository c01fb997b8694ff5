"""F9: boto3 with moto, which checks the application's signatures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.pages import CLIENTS, LONGEST, Front, Page, environment, front
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, run, wait_until

PAGE = Page("object-store")
_KEYS_OF_THE_STORE = """
import json, sys, boto3
place = {"endpoint_url": sys.argv[1], "region_name": "us-east-1"}
iam = boto3.client("iam", aws_access_key_id="any", aws_secret_access_key="any", **place)
iam.create_user(UserName="app")
key = iam.create_access_key(UserName="app")["AccessKey"]
statement = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
iam.put_user_policy(UserName="app", PolicyName="all", PolicyDocument=policy)
print(json.dumps([key["AccessKeyId"], key["SecretAccessKey"]]))
"""
_WITHOUT_SIGNATURE = {"INITIAL_NO_AUTH_ACTION_COUNT": "3"}
"""moto checks the signature of every request after those that create the application's keys."""


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, list[str]]]:
    """The store's port, and the application's keys."""
    port, directory = free_port(), tmp_path_factory.mktemp("moto")
    environ = environment(directory)
    argv = ["moto_server", "-H", LOOPBACK, "-p", str(port)]
    with Process(argv, name="moto", directory=directory, environ=environ | _WITHOUT_SIGNATURE) as process:
        wait_until(lambda: accepts(port), "moto listening", process=process)
        script = [str(CLIENTS / "bin" / "python"), "-c", _KEYS_OF_THE_STORE, f"http://{LOOPBACK}:{port}"]
        done = run(script, cwd=directory, environ=environ, seconds=LONGEST)
        assert done.returncode == 0, done.stderr
        yield port, json.loads(done.stdout)


@pytest.fixture(scope="module")
def gate(backend: tuple[int, list[str]], gateways: Pool) -> Iterator[Front]:
    with front(gateways, PAGE, store=backend[0]) as gate:
        yield gate


@pytest.fixture
def place(gate: Front, backend: tuple[int, list[str]], tmp_path: Path) -> Path:
    """A user's directory with the client of the page and the application's keys."""
    (tmp_path / "store.py").write_text(gate.here(PAGE.block("The client", "python")))
    key, secret = backend[1]
    (tmp_path / ".aws").mkdir()
    keys = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    (tmp_path / ".aws" / "credentials").write_text(keys)
    return tmp_path


@pytest.fixture
def stored(gate: Front, place: Path) -> None:
    """What an editor puts is in the store."""
    gate.succeeds("Work with objects", place, gate.editor)


@pytest.mark.usefixtures("stored")
def test_what_an_editor_puts_a_viewer_lists_and_gets(gate: Front, place: Path) -> None:
    gate.shows("Read as a viewer", gate.succeeds("Read as a viewer", place, gate.viewer))


@pytest.mark.usefixtures("stored")
def test_a_viewer_and_a_copy_are_refused_in_words_that_boto3_shows(gate: Front, place: Path) -> None:
    gate.refuses("Write as a viewer", place, gate.viewer)
    gate.refuses("Copy into a bucket that takes no copies", place, gate.editor)
    gate.shows("Read as a viewer", gate.succeeds("Read as a viewer", place, gate.viewer))


@pytest.mark.usefixtures("stored")
def test_the_store_still_checks_the_signature(gate: Front, place: Path) -> None:
    credentials = place / ".aws" / "credentials"
    credentials.write_text(credentials.read_text().rstrip() + "x\n")
    done = gate.types("Read as a viewer", place, gate.viewer)
    assert done.returncode != 0
    assert "SignatureDoesNotMatch" in done.stdout
