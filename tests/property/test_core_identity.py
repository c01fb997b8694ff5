"""Identity headers: no alias from a client passes, and every value is one line that decodes to the original."""

from __future__ import annotations

import re
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.identity import (
    PRESETS,
    STRIPPED,
    IdentityField,
    IdentityHeaders,
    IdentityNameError,
    IdentityOutputs,
    encode_value,
    identity_lines,
    names_from,
)
from proxy.core.permissions import PermissionSet
from proxy.core.request.claims import fold
from tests.unit.core.grants import grant

words = st.text(st.characters(codec="utf-8"), max_size=20)


@given(st.sampled_from(sorted(STRIPPED)), st.data())
def test_every_spelling_of_a_stripped_header_folds_into_the_stripped_names(name: bytes, data: st.DataObject) -> None:
    alias = "".join(
        data.draw(st.sampled_from("-_." if char == "-" else (char.lower(), char.upper()))) for char in name.decode()
    )
    assert fold(alias.encode()) in STRIPPED


@given(st.binary(max_size=30))
def test_folding_is_idempotent_and_keeps_the_length(name: bytes) -> None:
    assert fold(fold(name)) == fold(name)
    assert len(fold(name)) == len(name)
    assert fold(name.upper()) == fold(name.lower()) == fold(name.replace(b"-", b"_")) == fold(name.replace(b"-", b"."))


@given(words)
def test_an_encoded_value_is_visible_ascii_and_decodes_to_the_value(value: str) -> None:
    encoded = encode_value(value)
    assert re.fullmatch(r"[!-~]*", encoded)
    assert unquote(encoded, errors="strict") == value


@given(st.text(st.characters(categories=["Cs"]), max_size=5))
def test_a_value_with_lone_surrogates_stays_on_one_line(value: str) -> None:
    assert re.fullmatch(r"[!-~]*", encode_value(value))


@given(words, words, words, words, st.sampled_from(sorted(PRESETS)))
def test_every_header_is_sent_once_on_one_line(user: str, email: str, org: str, role: str, preset: str) -> None:
    scopes = PermissionSet.of(["things:read", "things/caf%C3%A9:list"])
    lines = identity_lines(
        PRESETS[preset], grant(user_id=user, email=email, org_name=org, role=role, token_name=org, scopes=scopes)
    )
    fields = lines.decode("ascii").split("\r\n")
    assert fields.pop() == ""
    assert [field.partition(": ")[0] for field in fields] == [name for _, name in PRESETS[preset].headers]
    assert all(re.fullmatch(r"[A-Za-z-]+: (?:[!-~]+(?: [!-~]+)*)?", field) for field in fields)
    sent = dict(field.partition(": ")[::2] for field in fields)
    known = {IdentityField.USER: user, IdentityField.EMAIL: email, IdentityField.ORG: org, IdentityField.ROLE: role}
    for what, name in PRESETS[preset].headers:
        if what in known:
            assert unquote(sent[name]) == known[what]
        if what is IdentityField.SCOPES:
            assert tuple(map(unquote, sent[name].split(" "))) == scopes.texts


@given(st.dictionaries(st.sampled_from([member.value for member in IdentityField]), st.text(max_size=12), max_size=4))
def test_configured_names_are_field_names_that_are_stripped_or_they_are_refused(mapping: dict[str, str]) -> None:
    try:
        names = names_from(mapping)
    except IdentityNameError:
        return
    assert {fold(name.encode("ascii")) for _, name in names.headers} <= IdentityOutputs(
        (IdentityHeaders(names),)
    ).stripped
    assert len({fold(name.encode("ascii")) for _, name in names.headers}) == len(mapping)
