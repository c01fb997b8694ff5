"""Logging never waits for the reader of the log: a stalled reader only costs lines, which are counted."""

from __future__ import annotations

import fcntl
import io
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import IO, cast

import pytest

from proxy.observe.writer import QUEUE_BYTES, RESUME_BYTES, LineWriter
from tests.support.process import HANGS_SECONDS

LINE = b"x" * 199 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, IO[str]]]:
    """A pipe without a reader yet: the end to read from, and the stream to write to."""
    reader, writer = os.pipe()
    with open(writer, "w", encoding="ascii") as stream:
        yield reader, stream
    os.close(reader)


def _notice(count: int) -> bytes:
    return b"dropped %d\n" % count


def _read_until(reader: int, complete: Callable[[bytes], bool]) -> bytes:
    """Read until what has come is ``complete``."""
    data = b""
    while not complete(data):
        assert select.select([reader], [], [], HANGS_SECONDS)[0], f"nothing comes behind {data[-200:]!r}"
        some = os.read(reader, 1 << 20)
        assert some, f"the log ends with {data[-200:]!r}"
        data += some
    return data


def _read_all(reader: int) -> bytes:
    """Read what the pipe holds, after a flush."""
    data = b""
    while select.select([reader], [], [], 0)[0] and (some := os.read(reader, 1 << 20)):
        data += some
    return data


def _fill(writer: LineWriter, lines: int) -> None:
    for _ in range(lines):
        writer.put(LINE)


def _close(writer: LineWriter) -> None:
    assert writer.flush(HANGS_SECONDS)
    writer.close()


def test_lines_over_the_limit_are_dropped_and_their_count_is_written_in_their_place(
    pipe: tuple[int, IO[str]],
) -> None:
    reader, stream = pipe
    writer = LineWriter(stream, _notice)
    sent = 2 * QUEUE_BYTES // len(LINE)
    _fill(writer, sent)
    assert not writer.flush(0.05)
    lines = _read_until(reader, lambda data: data.endswith(b"\n") and not data.endswith(LINE)).splitlines(keepends=True)
    # The pipe itself holds some more.
    assert 0 <= lines.count(LINE) - QUEUE_BYTES // len(LINE) < 1000
    assert lines[-1] == b"dropped %d\n" % (sent - lines.count(LINE))
    writer.put(b"after\n")
    _close(writer)
    assert _read_all(reader) == b"after\n"


def test_after_a_drop_lines_are_accepted_again_when_the_queue_is_nearly_empty_with_a_notice_before_them(
    pipe: tuple[int, IO[str]],
) -> None:
    reader, stream = pipe
    writer = LineWriter(stream, _notice)
    sent = QUEUE_BYTES // len(LINE) + 1000
    _fill(writer, sent)
    got = b""
    while len(got) < QUEUE_BYTES - RESUME_BYTES // 2:
        got += os.read(reader, 1 << 16)
    # The writer fills the pipe again at once, so that the queue is now below the limit.
    writer.put(b"after\n")
    lines = (got + _read_until(reader, lambda data: data.endswith(b"after\n"))).splitlines(keepends=True)
    taken = lines.count(LINE)
    assert lines == [*[LINE] * taken, b"dropped %d\n" % (sent - taken), b"after\n"]
    _close(writer)


class Overtaken:
    """A queue into which ``late`` puts a line just after the writer has found it empty."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[object] = SimpleQueue()
        self.put, self.get = self._queue.put, self._queue.get
        self.late: Callable[[], object] | None = None

    def empty(self) -> bool:
        found = self._queue.empty()
        if found and self.late is not None:
            late, self.late = self.late, None
            late()
        return found


def test_a_line_that_comes_while_the_dropped_ones_are_counted_is_behind_their_only_notice(
    pipe: tuple[int, IO[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, stream = pipe
    monkeypatch.setattr("proxy.observe.writer.SimpleQueue", Overtaken)
    writer = LineWriter(stream, _notice)
    queue = cast(Overtaken, writer._queue)
    queue.late = lambda: writer.put(b"after\n")
    _fill(writer, QUEUE_BYTES // len(LINE) + 1000)
    lines = _read_until(reader, lambda data: data.endswith(b"after\n")).splitlines(keepends=True)
    assert lines[-2:] == [b"dropped %d\n" % (QUEUE_BYTES // len(LINE) + 1000 - lines.count(LINE)), b"after\n"]
    assert len(lines) == lines.count(LINE) + 2
    _close(writer)


def test_lines_of_processes_that_share_a_pipe_do_not_mix(pipe: tuple[int, IO[str]]) -> None:
    reader, stream = pipe
    fcntl.fcntl(stream.fileno(), fcntl.F_SETFL, os.O_NONBLOCK)
    writers = [LineWriter(stream, _notice) for _ in range(2)]
    for number, writer in enumerate(writers):
        writer.put(b"".join(b"%d" % number * 700 + b"\n" for _ in range(1000)))
    lines = _read_until(reader, lambda data: data.count(b"\n") == 2000).splitlines()
    assert sorted(set(lines)) == [b"0" * 700, b"1" * 700]
    for writer in writers:
        _close(writer)
    assert _read_all(reader) == b""


def test_a_line_longer_than_a_chunk_is_written_whole(pipe: tuple[int, IO[str]]) -> None:
    reader, stream = pipe
    writer = LineWriter(stream, _notice)
    data = b"short\n" + b"y" * 10_000 + b"\nshort\n"
    writer.put(data)
    _close(writer)
    assert _read_all(reader) == data


def test_the_stream_may_be_closed_before_its_lines_are_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as stream:
        writer = LineWriter(stream, _notice)
    writer.put(LINE)
    _close(writer)
    assert path.read_bytes() == LINE


def test_a_closed_log_costs_lines_and_raises_nothing() -> None:
    ours, theirs = os.pipe()
    writer = LineWriter(open(theirs, "w"), _notice)  # noqa: SIM115 - closed below
    assert writer.stream is not None
    os.close(ours)
    writer.put(LINE)
    _close(writer)
    writer.stream.close()
    closed = LineWriter(io.StringIO(), _notice)
    assert closed.stream is not None
    closed.stream.close()
    closed.put(LINE)
    _close(closed)
    without_stream = LineWriter(None, _notice)
    without_stream.put(LINE)
    _close(without_stream)


PROCESS = """
import asyncio, logging, sys
from proxy.observe import logs

logs.configure(process="test")
log = logs.get_logger("test")

async def main():
    for _ in range(300):
        for _ in range(20):
            logs.write_lines(b"x" * 4000 + b"\\n")  # as the access log does; other lines have quotas
        await asyncio.sleep(0)
    print("all logged", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    if sys.argv[1:]:
        raise RuntimeError("fatal")

log.info("first")
asyncio.run(main())
log.info("last")
"""


def _counted(log: bytes) -> tuple[int, int]:
    """How many of the many lines were written, and how many dropped."""
    notices = [line for line in log.splitlines() if b'"event":"log lines dropped"' in line]
    dropped = sum(int(line.rpartition(b'"count":')[2].rstrip(b"}")) for line in notices)
    return log.count(b"xxxx\n"), dropped


@pytest.mark.parametrize("end", [[], ["fatal"]])
def test_a_process_with_a_stalled_log_continues_and_reports_the_dropped_lines_later(end: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, *end], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        # The process has logged 24 MB, of which the pipe holds 64 KiB and the queue 8 MiB: with any wait for the reader
        # it would not come to this line.
        assert process.stdout.readline() == b"all logged\n"
        log = _read_until(process.stderr.fileno(), lambda data: data.endswith(b"}\n") and sum(_counted(data)) == 6000)
        process.stdin.write(b"\n")
        process.stdin.close()
        log += process.stderr.read()
        assert process.wait(HANGS_SECONDS) == len(end)
    lines = log.splitlines()
    assert b'"event":"first"' in lines[0]
    written, dropped = _counted(log)
    assert dropped > 0
    assert written + dropped == 6000
    if not end:
        assert b'"event":"last"' in lines[-1]


def test_a_process_can_exit_while_its_log_is_stalled() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(HANGS_SECONDS) == 0
