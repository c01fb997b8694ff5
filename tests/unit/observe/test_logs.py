"""Every log line is JSON and ASCII and contains no secret, also those of libraries."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.observe import logs
from tests.support.process import HANGS_SECONDS

ID = "0123456789ab"
SECRET = "S" * 32 + "CRC123"
TOKEN = f"acme_pat_{ID}_{SECRET}"


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    # A flush waits for all lines, however busy the machine is.
    monkeypatch.setattr(logs, "_EXIT_SECONDS", HANGS_SECONDS)
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions
    out = io.StringIO()
    logs.configure(process="test", stream=out)
    yield out
    root.handlers[0].close()
    root.handlers[:], logging.raiseExceptions = before[0], before[2]
    root.setLevel(before[1])


def _text(stream: io.StringIO) -> str:
    logs.flush()
    return stream.getvalue()


def _lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in _text(stream).splitlines()]


def test_a_line_has_time_level_event_process_and_its_fields(stream: io.StringIO) -> None:
    logs.get_logger("authority", worker=1).bind(epoch=7).info("link opened", applied=3)
    (line,) = _lines(stream)
    assert str(line["time"]).endswith("Z")
    assert {k: line[k] for k in ("level", "event", "process", "logger", "worker", "epoch", "applied")} == {
        "level": "info",
        "event": "link opened",
        "process": "test",
        "logger": "authority",
        "worker": 1,
        "epoch": 7,
        "applied": 3,
    }


def test_every_part_of_a_line_has_only_the_public_prefix_of_a_token(stream: io.StringIO) -> None:
    log = logs.get_logger("x")
    log.info(f"event {TOKEN}", field=TOKEN, nested={"a": [TOKEN]}, **{f"k{TOKEN}": 1})
    logging.getLogger("library").warning("from a library: %s", TOKEN)
    try:
        raise ValueError(f"bad {TOKEN}")
    except ValueError as error:
        log.exception("failed", error=error)
    text = _text(stream)
    assert SECRET not in text
    assert text.count(f"acme_pat_{ID}") == 7


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization=Basic {SECRET}",
        f"'X-Api-Key': '{SECRET}'",
        f"basic {SECRET}",
        f"http://user:{SECRET}@host/",
        f"https://{TOKEN}:{SECRET}@host/",
        f"$argon2id$v=19$m=19456,t=2,p=1${SECRET}",
        f"acme_key_{ID}_{SECRET[:5]}",
        f"/a%2F{TOKEN.replace('_', '%5f')}",
        f"/a%252F{TOKEN.replace('_', '%255F')}",
        # Found by fuzzing: eight characters and the brand were read as an id, and the token's kind as the secret.
        f"acme_pat_01234567{TOKEN}",
    ],
)
def test_credentials_are_removed_in_every_form(text: str) -> None:
    assert SECRET[:5] not in logs.redact(text)


def test_a_library_line_of_a_low_level_is_not_written(stream: io.StringIO) -> None:
    logging.getLogger("library").info("chatter")
    logs.get_logger("x").debug("chatter")
    assert _text(stream) == ""


@given(st.text(), st.text())
def test_a_line_is_one_line_of_printable_ascii_and_json(event: str, value: str) -> None:
    line = logs.render(logs.compose("info", event, {"value": value}, now=0.0))
    assert line.isascii() and line.isprintable()
    assert json.loads(line)["time"] == "1970-01-01T00:00:00.000Z"


def test_finished_lines_are_written_among_the_others_in_their_order(stream: io.StringIO) -> None:
    log = logs.get_logger("x")
    log.info("before")
    logs.write_lines(b'{"event":"one"}\n{"event":"two"}\n')
    log.info("after")
    assert [line["event"] for line in _lines(stream)] == ["before", "one", "two", "after"]


def test_terminal_escapes_and_line_ends_are_escaped() -> None:
    line = logs.render(logs.compose("info", "x", {"v": "a\r\nb\x1b[31m\x7f\x9b"}, now=0.0))
    assert "\\r\\n" in line and "\\u001b" in line and "\\u007f" in line and "\\u009b" in line


def test_a_value_that_json_cannot_hold_is_replaced_by_its_type() -> None:
    line = logs.render(logs.compose("info", "x", {"o": object(), "n": float("nan"), "long": "y" * 10_000}, now=0.0))
    assert json.loads(line)["o"] == "<object>"
    assert len(line) < 5_000


@given(st.text(), st.text())
def test_the_text_format_is_also_one_line_of_printable_ascii(event: str, value: str) -> None:
    line = logs.render_text(logs.compose("info", event, {"value": value}, now=0.0))
    assert line.isascii() and line.isprintable()
    assert line.startswith("1970-01-01T00:00:00.000Z INFO ")
