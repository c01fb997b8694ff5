"""Logging: one JSON object a line on standard error, with secrets redacted.

Rules of this module:
1. Every line of every process, including those of libraries, passes through ``compose`` and thus through the redactor.
2. The redactor keeps the public prefix of a token, and nothing of a credential header, an argon2 hash or a password in
   a URL. It does not depend on the brand, so it also covers tokens of other installations.
3. The output is ASCII with every control character escaped, so that no value can begin a line or control a terminal.
4. Logging never fails or blocks its caller: a value that cannot be serialised is replaced by its type, and a thread
   writes the lines (``writer``).
5. The bytes of each kind of line are limited (``log_quota``), except for debug lines.
6. Rules 1 and 5 do not hold for lines that are made in large numbers (``write_lines``): their maker follows 2 and 3,
   and limits them.

It uses the standard library, because importing structlog takes 190 ms per process (it loads rich): a quarter of the
time in which a killed process must be replaced.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Final
from urllib.parse import unquote

from proxy.observe.log_quota import LogQuota
from proxy.observe.writer import LineWriter

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
VALUE_LIMIT: Final = 4096
"""Most characters of one value; an ellipsis replaces the rest."""

_EXIT_SECONDS: Final = 1.0
"""How long ``flush``, also at exit, waits for the reader of the log."""
_UNQUOTED: Final = 3
"""How often the search for tokens decodes escapes: a backend behind a backend may decode them once more."""

_Record = dict[str, object]

# Not anchored on the left, because any character may precede a token, such as the last digit of an escape. Because of
# the lookahead, a token after the start of another one does not pass for its secret. Letter case is ignored, because a
# secret in the wrong case leaves few variants to try, and the checksum shows which is correct.
_KIND = r"_(?:[Pp][Aa][Tt]|[Kk][Ee][Yy])_"
_TOKEN = re.compile(rf"({_KIND}[0-9A-Za-z]{{12}})_(?!{_KIND[1:]})[0-9A-Za-z]+")
_CREDENTIAL = re.compile(
    r"""(?i)\b(authorization|x-api-key|cookie)(["']?\s*[:=]\s*["']?)(?:(?:basic|bearer)\s+)?[^\s"',;]+"""
    r"""|\b(basic|bearer)\s+[0-9A-Za-z+/=._~-]{8,}"""
)
_ARGON2 = re.compile(r"\$argon2(?:id|i|d)\$[^\s\"']*")
_URL_PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s/@]+@")


def redact(text: str) -> str:
    """``text`` without secrets; a token is cut to its public prefix."""
    text = without_tokens(text)
    text = _CREDENTIAL.sub(_without_value, text)
    text = _ARGON2.sub("$argon2[redacted]", text)
    return _URL_PASSWORD.sub(r"\1[redacted]@", text)


def without_tokens(text: str) -> str:
    """``text`` with every token, also a percent-encoded one, cut to its public prefix."""
    plain = text
    for _ in range(_UNQUOTED):
        if "%" not in plain:
            break
        plain = unquote(plain, errors="replace")
        if _TOKEN.search(plain):
            text = plain
    return _TOKEN.sub(r"\1", text)


def _without_value(match: re.Match[str]) -> str:
    header, gap, scheme = match.groups()
    return f"{header}{gap}[redacted]" if header else f"{scheme} [redacted]"


def compose(level: str, event: str, fields: Mapping[str, object], *, now: float) -> _Record:
    """A record without secrets: ``time`` (RFC 3339, UTC), ``level``, ``event``, then the fields.

    ``now`` is in unix seconds.
    """
    record: _Record = {"time": _timestamp(now), "level": level, "event": _clean(event)}
    for key, value in fields.items():
        record[_clean(key)] = _value(value)
    return record


def render(record: _Record) -> str:
    """A record as one JSON object, without line end."""
    return _json(record)


def render_text(record: _Record) -> str:
    """A record as one line of text for people, without control characters like the JSON form."""
    time_, level, event, *fields = record.items()
    text = _json(event[1])[1:-1]
    return " ".join((str(time_[1]), str(level[1]).upper(), text, *(f"{_json(k)[1:-1]}={_json(v)}" for k, v in fields)))


def _json(value: object) -> str:
    # json escapes every control character but DEL.
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("\x7f", "\\u007f")


class Logger:
    """Logs events with fields: ``log.info("link opened", worker=1)``. Immutable; ``bind`` returns a copy."""

    __slots__ = ("_fields", "_logger")

    def __init__(self, logger: logging.Logger, fields: Mapping[str, object]) -> None:
        self._logger = logger
        self._fields = fields

    def bind(self, **fields: object) -> Logger:
        """A copy whose lines also have these fields."""
        return Logger(self._logger, {**self._fields, **fields})

    def debug(self, event: str, /, **fields: object) -> None:
        """Log for developers; debug lines have no quota."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Log a normal event."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Log an event that may need attention."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Log a failure."""
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Log a failure with the current exception: its type, text and place, each redacted."""
        self._write(logging.ERROR, event, fields, failed=True)

    def _write(self, level: int, event: str, fields: Mapping[str, object], *, failed: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            merged = {**self._fields, **fields}
            self._logger.log(level, "%s", event, exc_info=failed, extra={"patgate_fields": merged})


def get_logger(name: str, /, **fields: object) -> Logger:
    """A logger whose lines have ``logger: name``; cheap, and usable before ``configure``."""
    return Logger(logging.getLogger(f"patgate.{name}"), {"logger": name, **fields})


def configure(
    *,
    process: str,
    level: str = "info",
    line_format: str = "json",
    stream: IO[str] | None = None,
    processes: int = 1,
) -> None:
    """Send all log lines of this process to ``stream`` (default: standard error). A later call replaces an earlier one.

    ``processes`` is the number of processes that share the log quotas. ``line_format`` is ``json``, or ``text`` for
    people: time, level, event, then ``field=value`` with each value as JSON. At exit, queued lines get a second to be
    written; lines logged before a second call still go to the earlier stream.
    """
    root = logging.getLogger()
    formatter = _Formatter(process, render_text if line_format == "text" else render)
    handler = _Handler(stream if stream is not None else sys.stderr, formatter, LogQuota(processes))
    for earlier in root.handlers:
        if isinstance(earlier, _Handler):
            earlier.flush()
            earlier.close()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("patgate").setLevel(LEVELS[level])
    # A failing log stream (a closed pipe) must not print a traceback.
    logging.raiseExceptions = False


def change(*, level: str, line_format: str) -> None:
    """Change level and format from the next line on; the stream stays."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler) and isinstance(handler.formatter, _Formatter):
            handler.formatter.write = render_text if line_format == "text" else render
    logging.getLogger("patgate").setLevel(LEVELS[level])


def write_lines(lines: bytes) -> None:
    """Write finished lines, each with its line end, to the log of this process (rule 6), in order."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.writer.put(lines)


def flush() -> None:
    """Wait at most a second until all logged lines are written."""
    for handler in logging.getLogger().handlers:
        handler.flush()


class _Handler(logging.Handler):
    """Passes lines to a ``LineWriter``; ``logging.shutdown`` flushes and closes it at every exit of the process."""

    def __init__(self, stream: IO[str] | None, formatter: logging.Formatter, quota: LogQuota) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.writer = LineWriter(stream, self._notice)
        self._quota = quota

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno <= logging.DEBUG:
            self.writer.put(self._line(record))
            return
        kind = _kind(record)
        if not self._quota.has_room(kind):
            return
        left_out = self._quota.left_out(kind)
        if left_out:
            record.patgate_left_out = left_out
        line = self._line(record)
        self._quota.take(kind, len(line))
        self.writer.put(line)

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            left_out = self._quota.all_left_out()
        if left_out:
            self.writer.put(self._counted("log lines left out", left_out))
        self.writer.flush(_EXIT_SECONDS)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("ascii") + b"\n"

    def close(self) -> None:
        self.writer.close()
        super().close()

    def _notice(self, count: int) -> bytes:
        return self._counted("log lines dropped", count)

    def _counted(self, event: str, count: int) -> bytes:
        record = logging.makeLogRecord(
            {
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "msg": event,
                "patgate_fields": {"logger": "log", "count": count},
            }
        )
        return self._line(record)


def _kind(record: logging.LogRecord) -> tuple[object, ...]:
    """The kind of a line, by which quotas count; no part of it comes from a client."""
    if hasattr(record, "patgate_fields") and isinstance(record.args, tuple):
        return record.name, *record.args
    return record.name, record.pathname, record.lineno


class _Formatter(logging.Formatter):
    def __init__(self, process: str, write: Callable[[_Record], str]) -> None:
        super().__init__()
        self._process = process
        self.write = write

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {"process": self._process, "pid": record.process}
        own = getattr(record, "patgate_fields", None)
        if isinstance(own, dict):
            fields.update(own)
        else:
            fields["logger"] = record.name
        left_out = getattr(record, "patgate_left_out", None)
        if left_out is not None:
            fields["left_out"] = left_out
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = self._exception(record.exc_info[1])
        try:
            event = record.getMessage()
        except (TypeError, ValueError):
            event = str(record.msg)
        return self.write(compose(record.levelname.lower(), event, fields, now=record.created))

    @staticmethod
    def _exception(error: BaseException) -> str:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f" at {place.tb_frame.f_code.co_qualname}:{place.tb_lineno}" if place is not None else ""
        return f"{type(error).__name__}: {error}{where}"


def _timestamp(now: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return f"{whole}.{int(now % 1 * 1000):03d}Z"


def _clean(text: str) -> str:
    text = redact(text[: VALUE_LIMIT * 2])
    return text if len(text) <= VALUE_LIMIT else text[:VALUE_LIMIT] + "…"


def _value(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, Mapping):
        return {_clean(str(k)): _value(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_value(v) for v in value]
    if isinstance(value, BaseException):
        return _clean(f"{type(value).__name__}: {value}")
    return f"<{type(value).__name__}>"
