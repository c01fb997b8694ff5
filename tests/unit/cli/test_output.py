"""Values from other users are printed as plain text: never as markup or escape sequences, and never wrapped."""

import json

import pytest

from proxy.cli.output import Output, plain
from proxy.core.errors import Conflict, StoreUnavailable


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (7, "7"),
        (["a", "b"], "a b"),
        ("Zoë", "Zoë"),
        ("a\x1b[2J\r\nb", "a\\x1b[2J\\r\\nb"),
        ("\u202eevil", "\\u202eevil"),
    ],
)
def test_a_value_is_one_line_of_plain_text(value: object, text: str) -> None:
    assert plain(value) == text


def test_a_table_interprets_no_markup_and_folds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).table({"name": "NAME"}, [{"name": "[red]" + "x" * 300}], "none")
    assert "[red]" + "x" * 300 in capsys.readouterr().out


def test_programs_get_only_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(as_json=True)
    out.line("words")
    out.facts("title", [("a", 1)])
    out.table({"a": "A"}, [{"a": 1}], "none")
    out.secret("a token")
    out.document({"name": "Zoë"})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"name": "Zoë"}
    assert captured.err == ""


def test_control_characters_in_a_document_are_escaped_without_changing_its_meaning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = {"path": "/a\x9b31m\x7f\u202e\u2028\U000e0001", "name": "Zoë 😀", "line": "a\nb"}
    Output(as_json=True).document(value)
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out)
    assert "Zoë 😀" in out
    assert json.loads(out) == value


def test_a_refusal_is_one_sentence_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).refusal(StoreUnavailable("the store cannot be used now because its disk is full"))
    captured = capsys.readouterr()
    assert captured.err == "The store cannot be used now because its disk is full.\n"
    assert captured.out == ""


def test_a_refusal_is_a_document_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).refusal(Conflict("There is one already."))
    assert json.loads(capsys.readouterr().out)["detail"] == "There is one already."
