"""Settings from environment variables, which override the file."""

from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import BaseModel

from proxy.core.errors import ConfigurationError, ConfigurationProblem
from proxy.settings.load import load
from proxy.settings.model import Settings
from proxy.settings.problems import ValueOrigins
from proxy.settings.sources.document import Tree
from proxy.settings.sources.environment import ignored, overlay

KEY = "0123456789abcdef" * 4


def settings(**environ: str) -> Settings:
    return load(None, environ)


def problems(**environ: str) -> list[ConfigurationProblem]:
    with pytest.raises(ConfigurationError) as caught:
        settings(**environ)
    return list(caught.value.problems)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "patgate.yaml"
    path.write_text(
        "workers: 3\n"
        "upstreams:\n"
        "  my-app: { servers: ['http://a'] }\n"
        "routes:\n"
        "  - { path: '/{entity}', upstream: my-app }\n"
        "  - { path: '/{entity}/{id}', upstream: my-app }\n"
    )
    return path


def test_variables_override_the_file(file: Path) -> None:
    loaded = load(
        file,
        {
            "PATGATE_WORKERS": "5",
            "PATGATE_LISTEN__PROXY__BIND": "[::]:9000",
            "PATGATE_UPSTREAMS__MY_APP__SERVERS": '["http://b", "unix:/s"]',
            "PATGATE_UPSTREAMS__MY_APP__SERVERS__1": "http://c",
            "PATGATE_ROUTES__1__ENFORCE": "no",
            "PATGATE_ROUTES__1__OPERATIONS__GET": "view",
            "PATGATE_LEASE": "2s",
            "HOME": "/root",
        },
    )
    assert loaded.workers == 5
    assert str(loaded.listen.proxy.bind) == "[::]:9000"
    assert list(map(str, loaded.upstreams["my-app"].servers)) == ["http://b", "http://c"]
    assert (loaded.routes[0].enforce, loaded.routes[1].enforce) == (True, False)
    assert loaded.routes[1].operations == {"GET": "view"}
    assert loaded.lease == 2.0


def test_a_section_is_applied_before_its_settings() -> None:
    loaded = settings(
        PATGATE_LISTEN__FORWARD_AUTH__BIND="127.0.0.1:1",
        PATGATE_LISTEN__FORWARD_AUTH='{"trusted": ["10.0.0.0/8"]}',
        PATGATE_ROLES="viewer: ['things:read']",
    )
    assert loaded.listen.forward_auth is not None
    assert str(loaded.listen.forward_auth.bind) == "127.0.0.1:1"
    assert loaded.listen.forward_auth.trusted == (ip_network("10.0.0.0/8"),)
    assert loaded.roles == {"viewer": ("things:read",)}


def test_lists_grow_only_at_their_end() -> None:
    loaded = settings(PATGATE_ROUTES__0__PATH="/x", PATGATE_ROUTES__0__ACCESS="denied")
    assert [route.path for route in loaded.routes] == ["/x"]
    [problem] = problems(PATGATE_ROUTES__1__PATH="/x")
    assert str(problem) == 'PATGATE_ROUTES__1__PATH: "1" is not an index of this list, which has 0 entries'


def test_text_stays_text() -> None:
    digits = "1" * 40
    loaded = settings(PATGATE_SECRET_KEY=digits, PATGATE_BRAND="no", PATGATE_POLICY__MAX_LIFETIME="null")
    assert loaded.secret_key is not None
    assert loaded.secret_key.get_secret_value() == digits
    assert loaded.brand == "no"
    assert loaded.policy.max_lifetime is None


def test_relative_paths_start_at_the_working_directory(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load(file, {"PATGATE_DATA_DIR": "data"}).data_dir == elsewhere / "data"


def test_problems_name_the_variable() -> None:
    found = problems(
        PATGATE_WORKERS="0",
        PATGATE_LISEN__PROXY__BIND="x",
        PATGATE_LISTEN__PROXY__BNID="x",
        PATGATE_UPSTREAMS='{"app": {"servers": ["ftp://h"]}}',
        PATGATE___X="1",
        PATGATE_="1",
    )
    assert {problem.path for problem in found} == {
        "PATGATE_WORKERS",
        "PATGATE_LISEN__PROXY__BIND",
        "PATGATE_LISTEN__PROXY__BNID",
        "PATGATE_UPSTREAMS",
        "PATGATE___X",
        "PATGATE_",
    }
    messages = {problem.path: problem.message for problem in found}
    assert all(problem.line is None for problem in found)
    assert messages["PATGATE_WORKERS"] == "must be at least 1"
    assert 'did you mean "listen"?' in messages["PATGATE_LISEN__PROXY__BIND"]
    assert 'did you mean "bind"?' in messages["PATGATE_LISTEN__PROXY__BNID"]
    assert messages["PATGATE_UPSTREAMS"].startswith("upstreams.app.servers[0]: must begin with http://")


def test_problems_of_file_and_environment_come_together(file: Path) -> None:
    file.write_text(file.read_text() + "colour: blue\n")
    with pytest.raises(ConfigurationError) as caught:
        load(file, {"PATGATE_WORKERS": "none"})
    assert [(p.line, p.path) for p in caught.value.problems] == [(7, "colour"), (None, "PATGATE_WORKERS")]


def test_a_variable_replaces_an_invalid_value_of_the_file(file: Path) -> None:
    file.write_text(file.read_text().replace("workers: 3", "workers: none"))
    assert load(file, {"PATGATE_WORKERS": "1"}).workers == 1


def test_reserved_and_kubernetes_variables_are_no_settings() -> None:
    plain = settings()
    assert plain == settings(
        PATGATE_CONFIG="x",
        PATGATE_BOOT_FD="3",
        PATGATE_SERVICE_HOST="10.0.0.1",
        PATGATE_SERVICE_PORT="80",
        PATGATE_SERVICE_PORT_HTTP="80",
        PATGATE_PORT="tcp://10.0.0.1:80",
        PATGATE_PORT_8080_TCP="tcp://10.0.0.1:8080",
        PATGATE_PORT_8080_TCP_ADDR="10.0.0.1",
        PATGATE_CONTROL_SERVICE_HOST="10.0.0.2",
        PATGATE_CONTROL_PORT_8081_TCP_PROTO="tcp",
    )


#: Variables that users and their tools have for other purposes.
FOREIGN = (
    "PATGATE_API_KEY", "PATGATE_APP_TOKEN", "PATGATE_HOME", "PATGATE_LOG_FILE", "PATGATE_TOKEN", "PATGATE_TOKEN_FILE",
    "PATGATE_URL", "PATGATE_USER", "PATGATE_VERSION",
)  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_variable_that_is_not_meant_as_a_setting_is_ignored_and_listed(name: str) -> None:
    assert settings(**{name: "anything"}) == settings()
    assert ignored({name: "anything", "PATGATE_SERVICE_HOST": "10.0.0.1", "PATGATE_WORKERS": "2"}) == [name]


@pytest.mark.parametrize("name", [*Settings.model_fields, "secret_key_file", "store_file"])
def test_a_setting_with_two_letters_swapped_left_out_or_doubled_is_a_mistake(name: str) -> None:
    """It must not be ignored: the operator relies on it."""
    known = {*Settings.model_fields, "secret_key_file", "store_file"}
    middle = len(name) // 2
    wrong = {
        name[:middle] + name[middle + 1] + name[middle] + name[middle + 2 :],
        name[:middle] + name[middle] + name[middle:],
        name + "s",
        name.replace("_", ""),
    }
    if len(name) > 4:
        wrong.add(name[:middle] + name[middle + 1 :])
    for each in wrong - known:
        variable = f"PATGATE_{each.upper()}"
        assert [problem.path for problem in problems(**{variable: "1"})] == [variable]
        assert ignored({variable: "1"}) == []


@pytest.mark.parametrize("name", ["PATGATE_LISTEN__PROXI__BIND", "PATGATE_TOKEN__VALUE", "PATGATE_X__SERVICE_HOST"])
def test_a_variable_with_two_underscores_is_meant_as_a_setting(name: str) -> None:
    assert [problem.path for problem in problems(**{name: "1"})] == [name]
    assert ignored({name: "1"}) == []


def test_secrets_come_from_files(tmp_path: Path) -> None:
    key, binary = tmp_path / "key", tmp_path / "binary"
    key.write_text(KEY + "\n")
    binary.write_bytes(bytes(range(224, 256)))
    assert settings(PATGATE_SECRET_KEY_FILE=str(key)).secret_key_bytes() == bytes.fromhex(KEY)
    assert settings(PATGATE_SECRET_KEY_FILE=str(binary)).secret_key_bytes() == bytes(range(224, 256))


def test_the_stores_address_comes_from_a_file_and_is_not_repeated(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.write_text("sqlite\n")
    assert settings(PATGATE_STORE_FILE=str(store)).store == "sqlite"
    store.write_text("postgresql://patgate:hunter2@db/patgate\n")
    [problem] = problems(PATGATE_STORE_FILE=str(store))
    assert problem.path == "PATGATE_STORE_FILE"
    assert problem.message.startswith("needs secret_key")
    assert "hunter2" not in problem.message
    found = settings(PATGATE_STORE_FILE=str(store), PATGATE_SECRET_KEY=KEY)
    assert found.store == "postgresql://patgate:hunter2@db/patgate"


def test_a_secrets_file_that_cannot_be_used_is_a_problem(tmp_path: Path) -> None:
    empty, short = tmp_path / "empty", tmp_path / "short"
    empty.write_text("\n")
    short.write_text("hunter2")
    for path in (tmp_path / "none", tmp_path, empty, Path("/dev/zero")):
        [problem] = problems(PATGATE_SECRET_KEY_FILE=str(path))
        assert problem.path == "PATGATE_SECRET_KEY_FILE"
        assert "cannot be read, is empty or is larger" in problem.message
    [problem] = problems(PATGATE_SECRET_KEY_FILE=str(short))
    assert str(problem) == "PATGATE_SECRET_KEY_FILE: must be at least 32 bytes of text, base64 or hexadecimal"
    short.write_text(KEY)
    [problem] = problems(PATGATE_SECRET_KEY_FILE=str(short), PATGATE_SECRET_KEY=KEY)
    assert problem.message == "is set together with PATGATE_SECRET_KEY; set only one of the two"


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("PATGATE_POLICY_MAX_LIFETIME", "PATGATE_POLICY__MAX_LIFETIME"),
        ("PATGATE_LISTEN_PROXY_BIND", "PATGATE_LISTEN__PROXY__BIND"),
        ("PATGATE_LISTEN_FORWARD_AUTH_TRUSTED", "PATGATE_LISTEN__FORWARD_AUTH__TRUSTED"),
        ("PATGATE_AUDIT_REQUESTS", "PATGATE_AUDIT__REQUESTS"),
        ("PATGATE_NOTICES_SECRET_FILE", "PATGATE_NOTICES__SECRET_FILE"),
        ("PATGATE_ROUTES_0_ENFORCE", "PATGATE_ROUTES__0__ENFORCE"),
        ("PATGATE_UPSTREAMS_MY_APP_SERVERS", "PATGATE_UPSTREAMS__MY_APP__SERVERS"),
        ("PATGATE_UPSTREAMS_MY_APP_RESPONSE_TIMEOUT", "PATGATE_UPSTREAMS__MY_APP__RESPONSE_TIMEOUT"),
    ],
)
def test_a_settings_words_with_one_underscore_are_a_mistake_that_names_the_right_variable(
    name: str, right: str
) -> None:
    tree: dict[str, Tree] = {}
    (problem,) = overlay(tree, ValueOrigins(), {name: "x"})
    assert problem.path == name
    assert f"write {right} " in problem.message
    assert tree == {}
    assert ignored({name: "x"}) == []


@pytest.mark.parametrize(
    "name",
    [
        "PATGATE_TOKEN",
        "PATGATE_TOKEN_FILE",
        "PATGATE_URL",
        "PATGATE_POLICY_NOTE",
        "PATGATE_SERVICE_HOST",
        "PATGATE_PORT_8080_TCP",
        "PATGATE_PORT_8080_TCP_ADDR",
        "PATGATE_LISTEN_PROXY_SERVICE_PORT",
        "PATGATE_UPSTREAMS_APP_PORT",
        "PATGATE_UPSTREAMS_FILE",
        "PATGATE_ROLES_FILE",
        "PATGATE_ROLES_ADMIN",
    ],
)
def test_other_variables_are_left_alone(name: str) -> None:
    tree: dict[str, Tree] = {}
    assert overlay(tree, ValueOrigins(), {name: "x"}) == []
    assert tree == {}


def test_every_setting_in_a_section_is_known_with_one_underscore() -> None:
    """The list comes from the model, so that a new setting is included."""
    found = 0
    for section, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for name in field.annotation.model_fields:
                variable = f"PATGATE_{section}_{name}".upper()
                (problem,) = overlay({}, ValueOrigins(), {variable: "1"})
                assert f"write PATGATE_{section.upper()}__{name.upper()} " in problem.message
                found += 1
    assert found > 30
