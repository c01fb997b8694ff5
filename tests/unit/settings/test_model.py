"""The settings model: JSON forms, secrets, compilation, schema, documentation."""

import ast
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from proxy.core.identity import PRESETS, IdentityField
from proxy.core.kinds import Kind
from proxy.core.request.target import PathAllowance
from proxy.settings import model
from proxy.settings.compile import identity_names, route_table, token_format
from proxy.settings.load import load
from proxy.settings.model import Settings
from proxy.settings.schema import json_schema
from proxy.settings.section import Section
from proxy.settings.sections.routes import RouteSettings

ROOT = Path(__file__).parents[3]
PASSWORD = "hunter2"
KEY = "k" * 40


@pytest.fixture
def settings() -> Settings:
    loaded = load(ROOT / "config" / "patgate.yaml", {"PATGATE_SECRET_KEY": KEY})
    return loaded.model_copy(update={"store": f"postgresql://patgate:{PASSWORD}@db/patgate"})


def test_settings_and_their_secrets_survive_the_boot_json(settings: Settings) -> None:
    handed = Settings.from_boot_json(settings.to_boot_json())
    assert handed == settings
    assert handed.secret_key_bytes() == KEY.encode()
    assert PASSWORD in handed.store
    assert handed.upstreams["app"].servers == settings.upstreams["app"].servers
    assert handed.listen.forward_auth == settings.listen.forward_auth


def test_no_other_form_shows_a_secret(settings: Settings) -> None:
    for form in (
        repr(settings),
        str(settings),
        settings.model_dump_json(),
        json.dumps(settings.model_dump(mode="json")),
    ):
        assert KEY not in form
        assert PASSWORD not in form
    assert Settings.model_validate_json(settings.model_dump_json()).secret_key is None


def test_every_setting_is_read_by_some_code() -> None:
    """A setting that nothing reads promises what is not there."""
    read = {
        node.attr
        for path in (ROOT / "proxy").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Attribute)
    }
    sections = [each for each in vars(model).values() if isinstance(each, type) and issubclass(each, Section)]
    assert {f"{each.__name__}.{name}" for each in sections for name in each.model_fields if name not in read} == set()


def test_settings_are_frozen(settings: Settings) -> None:
    with pytest.raises(ValidationError):
        settings.__setattr__("workers", 3)


def test_the_routes_are_compiled_to_the_route_table(settings: Settings) -> None:
    table = route_table(settings)
    assert [route.name for route in table.routes] == [route.path for route in settings.routes]
    found = table.match("GET", "localhost", "/v1/channels/7/messages")
    assert found is not None
    assert (found.entity, found.entity_id, found.operation) == ("channels", "7", "subscribe")
    found = table.match("PUT", "localhost", "/v1/things/7")
    assert found is not None
    assert (found.route.index, found.route.upstream, found.operation) == (5, "app", "update")


def test_every_field_of_a_route_is_in_the_route_table() -> None:
    route = RouteSettings(
        path="/x",
        upstream="app",
        entity="things",
        methods=("GET",),
        host="H.example",
        allow=("semicolon", "empty_segment"),
        enforce=False,
    )
    [made] = route_table(Settings(routes=(route,))).routes
    assert made.methods == frozenset({"GET"})
    assert made.host == "h.example"
    assert made.allow == PathAllowance.SEMICOLON | PathAllowance.EMPTY_SEGMENT
    assert not made.enforce


def test_identity_headers_are_those_of_the_preset_or_the_configured_ones(settings: Settings) -> None:
    assert identity_names(settings.identity) == PRESETS["patgate"]
    own = Settings.model_validate({"identity": {"names": {"email": "X-Mail", "user": "X-User"}}})
    assert identity_names(own.identity).headers == ((IdentityField.EMAIL, "X-Mail"), (IdentityField.USER, "X-User"))


def test_tokens_begin_with_the_brand(settings: Settings) -> None:
    assert token_format(settings).mint(Kind.PAT).token.startswith("acme_pat_")


def test_the_schema_describes_every_setting() -> None:
    schema = json_schema()
    json.dumps(schema)
    assert set(schema["properties"]) == set(Settings.model_fields)
    for section in (schema, *schema["$defs"].values()):
        for name, field in section.get("properties", {}).items():
            assert field.get("description"), name
        assert section.get("type") != "object" or section["additionalProperties"] is False


def test_every_setting_is_documented_with_its_default_and_nothing_else_is() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = dict(
        re.findall(r"^\| `([a-z_.<>\[\]]+[a-z_0-9.<>\[\]]*)` \| [^`].*? \| (\S.*?) \| \S.* \|$", text, re.MULTILINE)
    )
    rows |= dict(
        re.findall(r"^\| `([a-z][a-z_0-9.<>\[\]]*)` \| `.*?` \| (`[^|]*`|required) \| \S.* \|$", text, re.MULTILINE)
    )
    known = dict(_fields(Settings, ""))
    assert set(rows) == set(known)
    for name, default in known.items():
        if default is not None:
            assert rows[name].strip("`") == default, name


def test_the_documented_meaning_of_a_setting_begins_with_its_description_in_the_schema() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    documented = dict(re.findall(r"^\| `([a-z_0-9.<>\[\]]+)` \|.* \| (\S.*) \|$", text, re.MULTILINE))
    schema = json_schema()
    sections = {"Settings": schema, **schema["$defs"]}
    different = {
        path: (documented[path], description)
        for path, section, name in _places(Settings, "")
        if not documented[path].startswith(description := sections[section]["properties"][name]["description"])
    }
    assert different == {}


def _places(section: type[BaseModel], above: str) -> Iterator[tuple[str, str, str]]:
    """Every setting's name in the documentation, its section's class and its field."""
    for name, field in section.model_fields.items():
        yield above + name, section.__name__, name
        inner = _plain(field.annotation)
        if get_origin(inner) is tuple and _is_model(_plain(get_args(inner)[0])):
            yield from _places(_plain(get_args(inner)[0]), f"{above}{name}[].")
        elif get_origin(inner) is dict and _is_model(_plain(get_args(inner)[1])):
            yield from _places(_plain(get_args(inner)[1]), f"{above}{name}.<name>.")
        elif _is_model(inner):
            yield from _places(inner, f"{above}{name}.")


def _fields(model: type[BaseModel], above: str) -> list[tuple[str, str | None]]:
    """The documented name of every setting, and its default if that has a short form."""
    found: list[tuple[str, str | None]] = []
    for name, field in model.model_fields.items():
        path = above + name
        default = "required" if field.is_required() else _short(field.default)
        found.append((path, default))
        inner = _plain(field.annotation)
        if get_origin(inner) is tuple and _is_model(_plain(get_args(inner)[0])):
            found += _fields(_plain(get_args(inner)[0]), f"{path}[].")
        elif get_origin(inner) is dict and _is_model(_plain(get_args(inner)[1])):
            found += _fields(_plain(get_args(inner)[1]), f"{path}.<name>.")
        elif _is_model(inner):
            found += _fields(inner, f"{path}.")
    return found


DAY: Final = 86400.0


def _short(default: object) -> str | None:
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default / DAY:g}d" if default >= DAY and default % DAY == 0 else f"{default:g}s"
    return str(default) if isinstance(default, str) else None


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _plain(kind: Any) -> Any:
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        inner = [each for each in get_args(kind) if each is not type(None)]
        return _plain(inner[0]) if len(inner) == 1 else kind
    return kind
