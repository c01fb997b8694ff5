"""Mistakes in the settings of the listeners for ingresses."""

import sys
from pathlib import Path

import pytest

from proxy.core.errors import ConfigurationError
from proxy.settings.load import load

SECRET = "correct-horse-battery"


@pytest.mark.parametrize("name", ["forward_auth", "ext_authz"])
@pytest.mark.parametrize(
    ("listener", "path", "message"),
    [
        ("bind: 'unix:auth.sock'", "bind", "absolute path"),
        ("bind: 'unix:/run/a b.sock'", "bind", "plain characters"),
        (f"bind: 'unix:/{'a' * 107}'", "bind", "at most 107"),
        ("bind: 'unix:/run/'", "bind", "plain characters"),
        ("bind: 'unix:/run/a.sock', trusted: [10.0.0.1]", "trusted", "has no effect"),
        ("bind: 'unix:/run/a.sock', socket_mode: '0666'", "socket_mode", "quotation marks"),
        ("bind: 'unix:/run/a.sock', socket_mode: 0660", "socket_mode", "quotation marks"),
        ("trusted: [10.0.0.1], tls: { certificate: none.pem, key: none.pem }", "tls.certificate", "cannot be read"),
        ("trusted: [10.0.0.1], secret: { file: none }", "secret.file", "cannot be read"),
        ("trusted: [10.0.0.1], secret: { file: short }", "secret.file", "at least 32 characters"),
        ("trusted: [10.0.0.1], secret: { file: spaced }", "secret.file", "at least 32 characters"),
        ("trusted: [10.0.0.1], secret: { file: empty }", "secret.file", "must hold one secret"),
        ("trusted: [10.0.0.1], secret: { file: three }", "secret.file", "must hold one secret"),
        ("trusted: [10.0.0.1], secret: { file: good, header: Authorization }", "secret.header", "a meaning in HTTP"),
        ("trusted: [10.0.0.1], secret: { file: good, header: x_forwarded_for }", "secret.header", "another meaning"),
        ("trusted: [10.0.0.1], secret: { file: good, header: X-Original-Url }", "secret.header", "another meaning"),
        ("trusted: [10.0.0.1], secret: { file: good, header: Destination }", "secret.header", "another meaning"),
        ("trusted: [10.0.0.1], secret: { file: good, header: X-Auth-User }", "secret.header", "another meaning"),
        ("trusted: [10.0.0.1], secret: { file: good, header: Path }", "secret.header", "another meaning"),
        ("trusted: [10.0.0.1], secret: { file: good, header: X-Patgate-Any, x: 1 }", "secret.x", ""),
        ("secret: { file: good }", "trusted", "must list the ingresses"),
    ],
)
def test_mistakes_of_a_listener_for_ingresses_are_named(
    tmp_path: Path, name: str, listener: str, path: str, message: str
) -> None:
    good = "s" * 32
    contents = {"short": SECRET[:31], "spaced": f"{good} {good}", "empty": "\n", "three": f"{good}\n" * 3, "good": good}
    for each, content in contents.items():
        (tmp_path / each).write_text(content)
    file = tmp_path / "patgate.yaml"
    file.write_text(f"listen:\n  {name}: {{ {listener} }}\n")
    with pytest.raises(ConfigurationError) as caught:
        load(file, {})
    problem, *others = caught.value.problems
    assert problem.path == f"listen.{name}.{path}"
    assert message in problem.message
    assert not any(
        content.strip() and content in each.message for each in (problem, *others) for content in contents.values()
    )


def test_a_listener_without_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where the libraries are not installed: the import system finds none of them."""
    file = tmp_path / "patgate.yaml"
    file.write_text("listen:\n  ext_authz: { trusted: [10.0.0.1] }\n")
    load(file, {})
    for name in ("h2", "google", "google.protobuf"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(ConfigurationError) as caught:
        load(file, {})
    (problem,) = caught.value.problems
    assert (problem.line, problem.path) == (2, "listen.ext_authz")
    assert problem.message == "needs the extra patgate[grpc], which is not installed (no h2 and no google.protobuf)"
