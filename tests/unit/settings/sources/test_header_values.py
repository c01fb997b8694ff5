"""``upstreams.….set_headers`` and ``remove_headers``: their sources, their rules, and who gets the values."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from proxy.core.errors import ConfigurationError
from proxy.settings.compile import header_edits, identity_outputs
from proxy.settings.load import load
from proxy.settings.model import Settings
from proxy.settings.problems import path_of
from proxy.settings.rules import warnings

SECRET = "s3cr3t-of-the-backend"


def configured(directory: Path, *lines: str, top: str = "") -> Settings:
    text = f"{top}\nupstreams:\n  app:\n    servers: ['http://127.0.0.1:1']\n" + "".join(
        f"    {line}\n" for line in lines
    )
    (directory / "patgate.yaml").write_text(text)
    return load(directory / "patgate.yaml", {})


def problems(directory: Path, *lines: str, top: str = "") -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        configured(directory, *lines, top=top)
    found = [f"{each.path}: {each.message}" for each in raised.value.problems]
    assert SECRET not in str(found) + str(raised.value)
    assert all(each.line is not None for each in raised.value.problems)
    return found


def secret_file(directory: Path, content: str = SECRET + "\n", mode: int = 0o600) -> Path:
    file = directory / "backend"
    file.write_text(content)
    file.chmod(mode)
    return file


def lines_of(settings: Settings) -> bytes:
    edits = header_edits(settings.upstreams["app"])
    assert edits is not None
    return edits.lines


def test_a_value_is_text_or_the_content_of_a_file_after_its_prefix(tmp_path: Path) -> None:
    secret_file(tmp_path)
    settings = configured(
        tmp_path,
        "set_headers:",
        '  X-Tenant: "42"',
        "  Authorization: { file: backend, prefix: 'Basic ' }",
        "  X-Long: { value: a b }",
    )
    assert lines_of(settings) == b"X-Tenant: 42\r\nAuthorization: Basic " + SECRET.encode() + b"\r\nX-Long: a b\r\n"


def test_a_file_may_be_a_link_and_may_be_readable_by_its_group(tmp_path: Path) -> None:
    secret_file(tmp_path, mode=0o640)
    (tmp_path / "link").symlink_to("backend")
    assert SECRET.encode() in lines_of(configured(tmp_path, "set_headers: { Authorization: { file: link } }"))


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o620, 0o660, 0o601])
def test_a_file_that_is_open_to_other_users_is_refused(mode: int, tmp_path: Path) -> None:
    file = secret_file(tmp_path, mode=mode)
    (found,) = problems(tmp_path, "set_headers: { Authorization: { file: backend } }")
    place, _, why = found.partition(": ")
    assert place == 'upstreams.app.set_headers["Authorization"]'
    assert why == f'the file "{file}" is open to other users; its mode must be 0600 or 0640'


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = secret_file(tmp_path).stat()
    owned = os.stat_result((*status[:4], os.geteuid() + 1, *status[5:]))
    monkeypatch.setattr(os, "fstat", lambda _: owned)
    assert "belongs to another user" in problems(tmp_path, "set_headers: { A: { file: backend } }")[0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "must not be empty"),
        (" \n", "must not be empty"),
        (f"{SECRET}\r\nX-Auth-User: root", "must be visible ASCII"),
        (f"{SECRET}\nsecond", "must be visible ASCII"),
        (f"{SECRET}\0", "must be visible ASCII"),
        (f"{SECRET}é", "must be visible ASCII"),
        (SECRET * 400, "must be at most 8192 characters"),
    ],
)
def test_a_file_whose_content_is_no_header_value_is_refused(content: str, why: str, tmp_path: Path) -> None:
    file = secret_file(tmp_path, content)
    (found,) = problems(tmp_path, "set_headers: { Authorization: { file: backend } }")
    assert found.startswith(f'upstreams.app.set_headers["Authorization"]: the content of the file "{file}" {why}')


def test_a_missing_file_and_one_that_is_no_file_are_refused_without_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    found = problems(tmp_path, "set_headers: { A: { file: none }, B: { file: pipe }, C: { file: . } }")
    assert [each.partition(": ")[0] for each in found] == [f"upstreams.app.set_headers.{name}" for name in "ABC"]
    assert "No such file" in found[0]
    assert "is not a regular file" in found[1]
    assert "is not a regular file" in found[2]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("set_headers: { A: { value: x, file: backend } }", "needs either value or file"),
        ("set_headers: { A: {} }", "needs either value or file"),
        ("set_headers: { A: 4242 }", "must be text, in quotes"),
        ("set_headers: { A: [s3cr3t] }", "must be text, in quotes"),
        ('set_headers: { A: "x\\r\\nB: y" }', "must be visible ASCII"),
        ('set_headers: { A: "x\\ny" }', "must be visible ASCII"),
        ('set_headers: { A: " x" }', "must not begin or end with white space"),
        ('set_headers: { A: { value: x, prefix: "Bearer\\n" } }', "must be visible ASCII"),
        ("set_headers: { A: { values: x } }", 'unknown setting "values"; did you mean "value"?'),
    ],
)
def test_a_value_that_no_header_can_have_is_refused_at_its_place(line: str, why: str, tmp_path: Path) -> None:
    secret_file(tmp_path)
    (found,) = problems(tmp_path, line)
    assert found.startswith("upstreams.app.set_headers.A")
    assert why in found
    assert "4242" not in found
    assert "s3cr3t" not in found


NEVER = [
    "Host", "host", "Connection", "Content-Length", "content_length", "Transfer-Encoding", "TE", "Upgrade", "Expect",
    "Keep-Alive", "Proxy-Authorization", "Trailer", "Via", "X-Request-Id", "X_Request_Id", "X-Auth-User", "X.Auth.Role",
    "Remote-User", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Anything", "Forwarded", "X-Real-IP",
    "X-Original-URL", "X-HTTP-Method-Override", "Content-Encoding", "Sec-WebSocket-Key", "X Y", "X:Y", "",
]  # fmt: skip


@pytest.mark.parametrize("name", NEVER)
def test_headers_that_patgate_or_http_writes_can_be_neither_set_nor_removed(name: str, tmp_path: Path) -> None:
    quoted = json.dumps(name)
    found = problems(tmp_path, f"set_headers: {{ {quoted}: x }}", f"remove_headers: [{quoted}]")
    assert [each.partition(": ")[0] for each in found] == [
        path_of(("upstreams", "app", "set_headers", name)),
        "upstreams.app.remove_headers[0]",
    ]
    assert all("field name" in each or "cannot be set or removed" in each for each in found)


@pytest.mark.parametrize("name", ["Content-Type", "content-type"])
def test_content_type_can_be_removed_and_not_set(name: str, tmp_path: Path) -> None:
    found = problems(tmp_path, f"set_headers: {{ {name}: x }}", "")
    assert [each.partition(": ")[0] for each in found] == [path_of(("upstreams", "app", "set_headers", name))]
    assert configured(tmp_path, f"remove_headers: [{name}]").upstreams["app"].remove_headers == (name,)


def test_the_identity_headers_of_every_upstream_can_be_neither_set_nor_removed(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "set_headers: { x_who: root }",
        "remove_headers: [X-Member]",
        "identity: { names: { user: X-Member } }",
        top="identity: { names: { user: X-Who } }",
    )
    assert found == [
        "upstreams.app.set_headers.x_who: carries an identity (identity) and cannot be set or removed",
        "upstreams.app.remove_headers[0]: carries an identity (upstreams.app.identity) and cannot be set or removed",
    ]


def test_a_header_is_named_once_in_all_its_spellings(tmp_path: Path) -> None:
    found = problems(tmp_path, "set_headers: { X-Key: a, x_key: b }", "remove_headers: [X.Key, Cookie, cookie]")
    assert [each.partition(":")[0] for each in found] == [
        "upstreams.app.set_headers.x_key",
        "upstreams.app.remove_headers[0]",
        "upstreams.app.remove_headers[2]",
    ]


def test_only_the_workers_get_the_values(tmp_path: Path) -> None:
    secret_file(tmp_path)
    found = configured(
        tmp_path, f"set_headers: {{ Authorization: {{ file: backend, prefix: 'Bearer ' }}, X-Inline: {SECRET} }}"
    )
    worker = Settings.from_boot_json(found.to_worker_json())
    assert worker.upstreams == found.upstreams
    assert lines_of(worker) == f"Authorization: Bearer {SECRET}\r\nX-Inline: {SECRET}\r\n".encode()
    for form in (
        repr(found),
        str(found),
        repr(found.upstreams["app"]),
        found.to_boot_json(),
        found.model_dump_json(),
        json.dumps(found.model_dump(mode="json")),
    ):
        assert SECRET not in form
    assert set(Settings.from_boot_json(found.to_boot_json()).upstreams["app"].set_headers) == {
        "Authorization",
        "X-Inline",
    }


def test_a_value_comes_from_a_variable_too(tmp_path: Path) -> None:
    file = secret_file(tmp_path)
    environ = {
        "PATGATE_UPSTREAMS__APP__SERVERS": '["http://127.0.0.1:1"]',
        "PATGATE_UPSTREAMS__APP__SET_HEADERS__AUTHORIZATION__FILE": str(file),
    }
    assert lines_of(load(None, environ)) == f"authorization: {SECRET}\r\n".encode()


def test_an_upstreams_identity_has_the_rules_of_the_global_one(tmp_path: Path) -> None:
    assert problems(tmp_path, "identity: { preset: remote-user, names: { user: X-A } }") == [
        "upstreams.app.identity.names: conflicts with preset; keep one of the two"
    ]
    assert problems(tmp_path, "identity: { names: { user: Host } }") == [
        "upstreams.app.identity.names: the header for user already has a meaning and cannot carry an identity"
    ]


def test_an_upstream_whose_identity_is_the_global_one_needs_no_lines_of_its_own(tmp_path: Path) -> None:
    assert identity_outputs(configured(tmp_path, "identity: { preset: patgate }")).upstreams == {}
    own = identity_outputs(configured(tmp_path, "identity: { preset: remote-user }"))
    assert own.of("app").header_names == ("Remote-User", "Remote-Groups", "Remote-Name", "Remote-Email")
    assert own.of("other").header_names[0] == "X-Auth-User"


def test_a_route_without_a_token_to_a_backend_with_a_credential_is_warned_of(tmp_path: Path) -> None:
    secret_file(tmp_path)
    lines = ("set_headers: { X-Tenant: a, Authorization: { file: backend } }",)
    routes = "routes:\n  - {{ path: /v1/x, upstream: app, entity: x }}\n  - {{ path: /o, upstream: app, access: {} }}"
    for access in ("public", "passthrough"):
        (found,) = warnings(configured(tmp_path, *lines, top=routes.format(access)))
        assert path_of(found.loc) == 'upstreams.app.set_headers["Authorization"]'
        assert found.message == f"requests without a token get it too, because routes[1] has access: {access}"
    assert list(warnings(configured(tmp_path, *lines, top=routes.format("denied")))) == []
    assert list(warnings(configured(tmp_path, "set_headers: { X-Tenant: a }", top=routes.format("public")))) == []


@pytest.mark.parametrize(
    ("route", "top", "why"),
    [
        ("enforce: false", "", "routes[0] has enforce: false"),
        ("cors: { origins: ['https://a.example'], preflight: pass }", "", "routes[0] lets preflights pass"),
        (
            "enforce: true",
            "cors: [{ origins: ['https://a.example'], preflight: pass }]",
            "routes[0] lets preflights pass",
        ),
        ("enforce: true", "cors: [{ origins: ['https://a.example'] }]", ""),
        ("cors: { origins: [] }", "cors: [{ origins: ['https://a.example'], preflight: pass }]", ""),
    ],
)
def test_every_way_in_which_requests_pass_without_a_token_to_a_backend_with_a_credential_is_warned_of(
    tmp_path: Path, route: str, top: str, why: str
) -> None:
    secret_file(tmp_path)
    routes = f"routes:\n  - {{ path: /v1/x, upstream: app, entity: x, {route} }}\n{top}"
    lines = ("set_headers: { Authorization: { file: backend } }",)
    found = [each.message for each in warnings(configured(tmp_path, *lines, top=routes))]
    assert found == ([f"requests without a token get it too, because {why}"] if why else [])
