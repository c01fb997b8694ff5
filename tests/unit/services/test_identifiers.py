# ruff: noqa: RUF001 - letters that look like others are what this is about
"""What people name things: one form for one email, no token in a text, a warning where a word mixes scripts."""

from __future__ import annotations

import base64
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import Conflict, Invalid
from proxy.core.kinds import Kind
from proxy.services import emails, identifiers, lookalikes
from proxy.services.tokens.issuance import KeyRequest, TokenRequest
from proxy.store import migrate
from proxy.store.audit.queries import LogQuery, SortOrder
from proxy.store.store import Store
from tests.contract.kit import ADMIN, FINGERPRINT, FORMAT, opened

TOKEN = FORMAT.mint(Kind.PAT).token
PREFIX = TOKEN.rpartition("_")[0]
ANN = "ann@example.org"
SAME = (
    "admin@xn--bcher-kva.example",
    "Admin@BÜCHER.example",
    "admin@bu\u0308cher.example",
    "ADMIN＠ｂücher．example",
    "ａｄｍｉｎ@bücher。example",
    " admin@XN--BCHER-KVA.Example ",
)
WRITTEN = {
    "whole": TOKEN,
    "key": FORMAT.mint(Kind.KEY).token,
    "of another brand": "umbra" + TOKEN.removeprefix("acme"),
    "upper case": TOKEN.upper(),
    "lower case": TOKEN.lower(),
    "inside": f"for the pipeline: {TOKEN}, keep it",
    "escaped": TOKEN.replace("_", "%5F"),
    "all escaped": "".join(f"%{ord(letter):02x}" for letter in TOKEN),
    "escaped twice": quote(TOKEN.replace("_", "%5F")),
    "as basic credentials": "Basic " + base64.b64encode(f"git:{TOKEN}".encode()).decode(),
    "in url-safe base64": base64.urlsafe_b64encode(TOKEN.encode()).decode(),
    "full width": "".join(chr(ord(letter) + 0xFEE0) for letter in TOKEN),
    "without its checksum": TOKEN[:-6],
}


@pytest.mark.parametrize("text", SAME)
def test_an_email_is_one_however_its_letters_and_its_domain_are_encoded(text: str) -> None:
    assert identifiers.email_key(text) == SAME[0]
    assert identifiers.email_key(identifiers.email(text)) == SAME[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a@straße.example", "a@strasse.example"),
        ("a@bücher.example", "a@bucher.example"),
        ("a@xn--pypal-4ve.com", "a@paypal.com"),
        ("a.b@example.org", "ab@example.org"),
    ],
)
def test_emails_of_different_domains_stay_different(one: str, other: str) -> None:
    assert identifiers.email_key(one) != identifiers.email_key(other)


@pytest.mark.parametrize(
    "text", ["a@a\u200db.example", "a@-.example", "a@xn--\u00fc.example", "a@☃☃.example", "a@é..b"]
)
def test_a_domain_that_is_no_name_of_the_internet_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as raised:
        identifiers.email(text)
    assert raised.value.errors[0][0] == "email"
    assert text not in str(raised.value)


@given(st.text(max_size=40) | st.builds("{}@{}".format, st.text(max_size=10), st.text(max_size=20)))
def test_whatever_is_stored_is_found_again_by_what_was_given(text: str) -> None:
    key = emails.key(text)
    assert emails.key(key) == key
    try:
        stored = emails.stored(text)
    except Invalid:
        return
    assert emails.stored(stored) == stored
    assert emails.key(stored) == key
    assert len(key) <= emails.LENGTH


async def test_nobody_is_added_twice_by_another_form_of_an_email_and_every_form_finds_them(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await kit.basics()
        added = await kit.users.add(ADMIN, SAME[1], "viewer")
        for text in SAME:
            assert (await kit.users.show(ADMIN, text)).id == added.id
            with pytest.raises(Conflict):
                await kit.users.add(ADMIN, text, "viewer")


async def test_a_store_from_before_finds_its_users_by_every_form_and_loses_none(tmp_path: Path) -> None:
    """Of two whose emails are one now, the older one has it; the other is found by id."""
    people = [
        ("usr_000000000001", "Eve@BÜCHER.example", "eve@bücher.example", None),
        ("usr_000000000002", "eve@xn--bcher-kva.example", "eve@xn--bcher-kva.example", None),
        ("usr_000000000003", "ann@straße.example", "ann@strasse.example", None),
        ("usr_000000000004", "bob@example.org", "bob@example.org", None),
        ("usr_000000000005", "old@bücher.example", "old@bücher.example", 9.0),
        ("usr_000000000006", "ｋim@bücher.example", "ｋim@bücher.example", None),
    ]
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'patgate.db'}")
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(migrate.SCRIPTS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for at, (user_id, email, key, removed) in enumerate(people):
            connection.execute(
                sa.text(
                    "INSERT INTO users (id, email, email_key, name, role, status, created_at, updated_at, removed_at) "
                    "VALUES (:id, :email, :key, '', 'r', 'active', :at, :at, :removed)"
                ),
                {"id": user_id, "email": email, "key": key, "at": float(at), "removed": removed},
            )
    engine.dispose()
    store = await Store.open(f"sqlite:///{tmp_path / 'patgate.db'}", key_fingerprint=FINGERPRINT)
    await store.close()
    with sqlite3.connect(tmp_path / "patgate.db") as file:
        found = dict(file.execute("SELECT id, email_key FROM users ORDER BY id"))
    file.close()
    assert list(found.values()) == [
        "eve@bücher.example",
        "eve@xn--bcher-kva.example",
        "ann@xn--strae-oqa.example",
        "bob@example.org",
        "old@xn--bcher-kva.example",
        "kim@xn--bcher-kva.example",
    ]


@pytest.mark.parametrize("how", WRITTEN)
async def test_no_text_that_holds_a_token_is_stored_and_the_field_is_named(how: str, tmp_path: Path) -> None:
    text = WRITTEN[how]
    async with opened(tmp_path) as kit:
        await kit.basics()
        made = await kit.mint(ANN, "t")
        before = await kit.store.epoch()
        attempts: dict[str, Any] = {
            "name": lambda: kit.tokens.create(ADMIN, TokenRequest(user=ANN, name=text)),
            "description": lambda: kit.tokens.create(ADMIN, TokenRequest(user=ANN, name="x", description=text)),
            "scopes[1]": lambda: kit.tokens.create(
                ADMIN, TokenRequest(user=ANN, name="x", scopes=["a:b", f"a/{text}:b"])
            ),
            "email": lambda: kit.users.add(ADMIN, f"{text}@example.org", "viewer"),
            "display_name": lambda: kit.orgs.add(ADMIN, "fresh", text),
            "permissions[0]": lambda: kit.roles.set(ADMIN, "fresh", [f"{text}:read"]),
            "forbidden_scopes[0]": lambda: kit.policies.set(ADMIN, "team", {"forbidden_scopes": [f"a/{text}:b"]}),
        }
        others: dict[str, list[Any]] = {
            "name": [
                lambda: kit.tokens.update(ADMIN, made.view.id, name=text),
                lambda: kit.users.add(ADMIN, "new@example.org", "viewer", name=text),
                lambda: kit.keys.create(ADMIN, KeyRequest(org="team", name=text, role="viewer")),
                lambda: kit.roles.set(ADMIN, text, ["a:b"]),
            ],
            "description": [lambda: kit.tokens.update(ADMIN, made.view.id, description=text)],
            "scopes[0]": [lambda: kit.tokens.add_scopes(ADMIN, made.view.id, [f"a/{text}:b"])],
            "email": [lambda: kit.members.set(ADMIN, "team", f"{text}@example.org", "viewer")],
        }
        for field, deeds in [*((field, [deed]) for field, deed in attempts.items()), *others.items()]:
            for deed in deeds:
                with pytest.raises(Invalid) as raised:
                    await deed()
                assert field in [place for place, _ in raised.value.errors]
                said = str(raised.value).lower()
                assert TOKEN[-20:].lower() not in said and text.lower() not in said
        assert await kit.store.epoch() == before


@pytest.mark.parametrize(
    "text",
    [PREFIX, f"replaces {PREFIX}", "a_pat_on_the_back"],
    ids=["prefix", "words", "none"],
)
def test_a_public_prefix_may_stand_in_a_text(text: str) -> None:
    assert identifiers.title(text, "name") == text
    assert identifiers.description(text) == text


@pytest.mark.parametrize("text", ["p\u0430ypal", "admin\u0456strator", "\u0391pple", "dep\u043bo\u0443 2", "x\u0561y"])
def test_a_word_of_several_scripts_is_found(text: str) -> None:
    assert lookalikes.mixed(text)


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "naïve Größe",
        "Мой token",
        "деплой-prod",
        "東京タワー",
        "東京tokyo",
        "서울seoul",
        "日本ㄅ",
        "42 ½ ①",
        "e\u0301t\u00e9",
    ],
)
def test_a_word_of_one_script_or_of_scripts_that_are_written_together_is_not(text: str) -> None:
    assert not lookalikes.mixed(text)


async def test_a_look_alike_is_warned_of_in_the_answer_and_in_the_event(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await kit.basics()
        token = await kit.tokens.create(ADMIN, TokenRequest(user=ANN, name="d\u0435ploy", expires=60.0))
        key = await kit.keys.create(ADMIN, KeyRequest(org="team", name="d\u0435ploy", role="viewer", expires=60.0))
        renamed = await kit.tokens.update(ADMIN, token.view.id, name="d\u0435ploy 2")
        user = await kit.users.add(ADMIN, "b@xn--pypal-4ve.com", "viewer")
        org = await kit.orgs.add(ADMIN, "fresh", "Fr\u0435sh")
        asked = await kit.invitations.invite(ADMIN, "team", "d\u0435@example.org", "viewer")
        plain = await kit.users.add(ADMIN, "c@example.org", "viewer", name="C")
        made: Any
        words = ("name", "name", "name", "email", "display name", "email")
        for made, word in zip((token, key, renamed, user, org, asked), words, strict=True):
            (warning,) = [one for one in made.as_dict()["warnings"] if "scripts" in one]
            assert f"the {word} mixes" in warning
        assert plain.as_dict()["warnings"] == []
        async with kit.store.read() as rows:
            entries = (await rows.log.page(LogQuery(), SortOrder.NEWEST, None, 7)).entries
    assert [(entry.action, entry.details.get("mixed_scripts")) for entry in entries] == [
        ("account.user.add", None),
        ("account.invitation.create", ["email"]),
        ("account.org.add", ["display_name"]),
        ("account.user.add", ["email"]),
        ("account.pat.update", ["name"]),
        ("account.key.mint", ["name"]),
        ("account.pat.mint", ["name"]),
    ]
