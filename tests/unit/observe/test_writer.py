"""Logging never waits for the reader of the log: a stalled reader only costs lines, which are counted."""

from __future__ import annotations

import fcntl
import io
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from proxy.observe.writer import QUEUE_BYTES, RESUME_BYTES, LineWriter

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


def _read_until_silent(reader: int, *, silence: float = 0.5) -> bytes:
    data = b""
    while select.select([reader], [], [], silence)[0] and (some := os.read(reader, 1 << 20)):
        data += some
    return data


def _fill(writer: LineWriter, lines: int) -> None:
    for _ in range(lines):
        writer.put(LINE)


def _close(writer: LineWriter) -> None:
    assert writer.flush(10.0)
    writer.close()


def test_lines_over_the_limit_are_dropped_and_their_count_is_written_in_their_place(
    pipe: tuple[int, IO[str]],
) -> None:
    reader, stream = pipe
    writer = LineWriter(stream, _notice)
    sent = 2 * QUEUE_BYTES // len(LINE)
    _fill(writer, sent)
    assert not writer.flush(0.05)
    lines = _read_until_silent(reader).splitlines(keepends=True)
    # The pipe itself holds some more.
    assert 0 <= lines.count(LINE) - QUEUE_BYTES // len(LINE) < 1000
    assert lines[-1] == b"dropped %d\n" % (sent - lines.count(LINE))
    writer.put(b"after\n")
    _close(writer)
    assert _read_until_silent(reader) == b"after\n"


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
    lines = (got + _read_until_silent(reader)).splitlines(keepends=True)
    taken = lines.count(LINE)
    assert lines == [*[LINE] * taken, b"dropped %d\n" % (sent - taken), b"after\n"]
    _close(writer)


def test_lines_of_processes_that_share_a_pipe_do_not_mix(pipe: tuple[int, IO[str]]) -> None:
    reader, stream = pipe
    fcntl.fcntl(stream.fileno(), fcntl.F_SETFL, os.O_NONBLOCK)
    writers = [LineWriter(stream, _notice) for _ in range(2)]
    for number, writer in enumerate(writers):
        writer.put(b"".join(b"%d" % number * 700 + b"\n" for _ in range(1000)))
    lines = _read_until_silent(reader).splitlines()
    assert sorted(set(lines)) == [b"0" * 700, b"1" * 700]
    assert len(lines) == 2000
    for writer in writers:
        _close(writer)


def test_a_line_longer_than_a_chunk_is_written_whole(pipe: tuple[int, IO[str]]) -> None:
    reader, stream = pipe
    writer = LineWriter(stream, _notice)
    data = b"short\n" + b"y" * 10_000 + b"\nshort\n"
    writer.put(data)
    _close(writer)
    assert _read_until_silent(reader) == data


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
import asyncio, logging, sys, time
from proxy.observe import logs

logs.configure(process="test")
log = logs.get_logger("test")

async def main():
    longest = 0.0
    for _ in range(300):
        begun = time.monotonic()
        for _ in range(20):
            logs.write_lines(b"x" * 4000 + b"\\n")  # as the access log does; other lines have quotas
        await asyncio.sleep(0)
        longest = max(longest, time.monotonic() - begun)
    print(longest, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    if sys.argv[1:]:
        raise RuntimeError("fatal")

log.info("first")
asyncio.run(main())
log.info("last")
"""


@pytest.mark.parametrize("end", [[], ["fatal"]])
def test_a_process_with_a_stalled_log_continues_and_reports_the_dropped_lines_later(end: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, *end], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        # The process has logged 24 MB, of which the pipe holds 64 KiB and the queue 8 MiB.
        assert float(process.stdout.readline()) < 5.0
        os.set_blocking(process.stderr.fileno(), False)
        log = _read_until_silent(process.stderr.fileno(), silence=2.0)
        process.stdin.write(b"\n")
        process.stdin.close()
        log += _read_until_silent(process.stderr.fileno(), silence=2.0)
        assert process.wait(10.0) == len(end)
    lines = log.splitlines()
    assert b'"event":"first"' in lines[0]
    notices = [line for line in lines if b'"event":"log lines dropped"' in line]
    dropped = sum(int(line.rpartition(b'"count":')[2].rstrip(b"}")) for line in notices)
    assert dropped > 0
    assert sum(b"xxxx" in line for line in lines) + dropped == 6000
    if not end:
        assert b'"event":"last"' in lines[-1]


def test_a_process_can_exit_while_its_log_is_stalled() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(20.0) == 0
