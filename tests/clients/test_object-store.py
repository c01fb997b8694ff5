"""F9: boto3 with moto, which checks the application's signatures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.pages import CLIENTS, EDITOR, LONGEST, Front, Page, environment, front
from tests.support.gateway import Token
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
    gate.refuses("Copy", place, gate.editor)
    gate.shows("Read as a viewer", gate.succeeds("Read as a viewer", place, gate.viewer))


@pytest.mark.usefixtures("stored")
def test_a_scope_covers_one_bucket(gate: Front, place: Path) -> None:
    token = gate.node.token(EDITOR, name="demo", scopes=["objects/demo:list", "objects/demo:read"])
    gate.shows("Read as a viewer", gate.succeeds("Read as a viewer", place, token))
    gate.refuses("Read with a token for another bucket", place, token)


Tokens = dict[str, tuple[Token, Token]]

CALLS = """
from botocore.exceptions import ClientError
from store import store

def code(call, **arguments):
    try:
        return call(**arguments)["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]

key = {"Bucket": "demo", "Key": "mine.txt"}
part = {**key, "UploadId": store.create_multipart_upload(**key)["UploadId"], "PartNumber": 1}
print(
    code(store.put_object, **key, Body=b"mine"),
    code(store.put_object_acl, **key, ACL="public-read"),
    code(store.put_object, Bucket="other", Key="mine.txt", Body=b"mine"),
    code(store.copy_object, **key, CopySource="other/key.txt"),
    code(store.upload_part_copy, **part, CopySource="other/key.txt"),
    code(store.put_bucket_policy, Bucket="demo", Policy="{}"),
    code(store.delete_objects, Bucket="demo", Delete={"Objects": [{"Key": "mine.txt"}]}),
    code(store.list_objects_v2, Bucket="demo"),
    code(store.list_buckets),
)
"""


@pytest.mark.usefixtures("stored")
def test_a_token_that_may_write_to_one_bucket_writes_there_only(gate: Front, place: Path) -> None:
    token = gate.node.token(EDITOR, name="writer", scopes=["objects/demo:write"])
    environ = environment(place, token)
    done = run([str(CLIENTS / "bin" / "python"), "-c", CALLS], cwd=place, environ=environ, seconds=LONGEST)
    assert done.stdout.split() == ["200", "200", *["403"] * 7], done.stderr


@pytest.mark.parametrize(
    ("method", "target", "permission"),
    [
        ("GET", "/", "objects:list"),
        *(
            (method, f"/demo{slash}{query}", f"objects/demo:{operation}")
            for slash in ("", "/")
            for method, query, operation in (
                ("GET", "", "list"),
                ("GET", "?acl", "list"),
                ("GET", "?policy", "list"),
                ("PUT", "", "configure"),
                ("PUT", "?acl", "configure"),
                ("PUT", "?policy", "configure"),
                ("DELETE", "", "configure"),
                ("DELETE", "?policy", "configure"),
                ("POST", "?delete", "delete"),
                ("POST", "?delete=1", "delete"),
                ("POST", "?x=y&delete=", "delete"),
            )
        ),
        ("GET", "/demo/key", "objects/demo:read"),
        ("GET", "/demo/key?acl", "objects/demo:read"),
        ("PUT", "/demo/key", "objects/demo:write"),
        ("PUT", "/demo/key?acl", "objects/demo:write"),
        ("PUT", "/demo/key?acl=1", "objects/demo:write"),
        ("PUT", "/demo/key?partNumber=1&uploadId=x", "objects/demo:write"),
        ("POST", "/demo/key?uploads", "objects/demo:write"),
        ("POST", "/demo/key?uploadId=x", "objects/demo:write"),
        ("DELETE", "/demo/key", "objects/demo:delete"),
        ("DELETE", "/demo/key?uploadId=x", "objects/demo:delete"),
    ],
)
def test_the_page_says_which_permission_a_request_needs(
    gate: Front, tokens: Tokens, method: str, target: str, permission: str
) -> None:
    """The store refuses requests without a signature, so nothing is done."""
    by_patgate = []
    with gate.node.connect() as connection:
        for token in tokens[permission]:
            answer = connection.request(method, target, host=LOOPBACK, headers={"X-API-Key": token.value})
            by_patgate.append(b'"scope_denies"' in answer.body)
    assert by_patgate == [False, True]


@pytest.fixture(scope="module")
def tokens(gate: Front) -> Tokens:
    """For each permission a token that has it, and one that has all others in this bucket, and all in another."""
    here = [f"objects/demo:{operation}" for operation in ("list", "configure", "read", "write", "delete")]
    everywhere = [*here, *(each.replace("demo", "other") for each in here)]
    with gate.node.control_socket() as control:
        return {
            each: (
                control.create_token(EDITOR, name=each, scopes=[each]),
                control.create_token(EDITOR, name=f"not {each}", scopes=[s for s in everywhere if s != each]),
            )
            for each in ("objects:list", *here)
        }


@pytest.mark.parametrize(
    ("method", "target", "header", "reason"),
    [
        ("PUT", "/demo/key", "X-Amz-Copy-Source: other/key.txt", "second_target"),
        ("PUT", "/demo/key", "x_amz_copy_source: other/key.txt", "second_target"),
        ("PUT", "/demo/key?partNumber=1&uploadId=x", "X-Amz-Copy-Source: other/key.txt", "second_target"),
        ("PUT", "/demo/key", "Host: other.s3.example.com", "no_route"),
        ("GET", "/demo/key", "Host: other.localhost", "no_route"),
        ("POST", "/demo", "Content-Type: multipart/form-data; boundary=b", "operation_unmapped"),
        ("POST", "/demo/", "Content-Type: multipart/form-data; boundary=b", "operation_unmapped"),
        ("POST", "/demo?Delete", "", "query_ambiguous"),
        ("POST", "/demo?delete&delete", "", "query_ambiguous"),
    ],
)
def test_a_second_bucket_or_object_is_refused(gate: Front, method: str, target: str, header: str, reason: str) -> None:
    name, _, value = header.partition(": ")
    host = value if name == "Host" else LOOPBACK
    headers = {"X-API-Key": gate.editor.value} | ({name: value} if name not in ("", "Host") else {})
    with gate.node.connect() as connection:
        answer = connection.request(method, target, host=host, headers=headers)
    assert answer.json()["reason"] == reason


@pytest.mark.usefixtures("stored")
def test_the_store_still_checks_the_signature(gate: Front, place: Path) -> None:
    credentials = place / ".aws" / "credentials"
    credentials.write_text(credentials.read_text().rstrip() + "x\n")
    done = gate.types("Read as a viewer", place, gate.viewer)
    assert done.returncode != 0
    assert "SignatureDoesNotMatch" in done.stdout
