"""The channel between the supervisor and a child: commands, replies, descriptors and heartbeats."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.core.errors import Invalid
from proxy.core.ipc.child_protocol import CommandRefused, ControlCommand
from proxy.supervisor_channel import ChildChannel, SupervisorChannel, pair
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.kit import until


@asynccontextmanager
async def line() -> AsyncIterator[tuple[SupervisorChannel, ChildChannel, list[ControlCommand]]]:
    """Both ends of a channel in this process; the name of a command selects how the child handles it."""
    ours, theirs = pair()
    supervisor, child = SupervisorChannel(ours), ChildChannel(theirs)
    taken: list[ControlCommand] = []

    async def handle(command: ControlCommand) -> None:
        taken.append(command)
        for fd in command.fds:
            os.close(fd)
        if command.name == "refuse":
            raise Invalid("things", "are not as they should be")
        if command.name == "fail":
            raise RuntimeError("a secret")
        if command.name == "sleep":
            await asyncio.sleep(3600)

    supervisor.open()
    child.serve(handle)
    try:
        yield supervisor, child, taken
    finally:
        await child.end()
        supervisor.close()


async def test_a_command_is_carried_out_and_a_refusal_has_the_childs_own_sentence() -> None:
    async with line() as (supervisor, _, taken):
        await supervisor.ask("do", seconds=HANGS_SECONDS, sockets=["proxy"])
        assert (taken[0].name, taken[0].details["sockets"]) == ("do", ["proxy"])
        with pytest.raises(CommandRefused, match=r"^things: are not as they should be$") as refused:
            await supervisor.ask("refuse", seconds=HANGS_SECONDS)
        assert refused.value.answered
        with pytest.raises(CommandRefused, match=r"^a command failed \(RuntimeError\)$"):
            await supervisor.ask("fail", seconds=HANGS_SECONDS)


async def test_descriptors_are_sent_with_a_command() -> None:
    ours, theirs = pair()
    supervisor, child = SupervisorChannel(ours), ChildChannel(theirs)
    read: list[bytes] = []

    async def handle(command: ControlCommand) -> None:
        for fd in command.fds:
            read.append(os.pread(fd, 100, 0))
            os.close(fd)

    supervisor.open()
    child.serve(handle)
    documents = [os.memfd_create("document") for _ in range(2)]
    for place, fd in enumerate(documents):
        os.pwrite(fd, b"document %d" % place, 0)
    await supervisor.ask("read", fds=documents, seconds=HANGS_SECONDS)
    assert read == [b"document 0", b"document 1"]
    for fd in documents:
        os.close(fd)
    await child.end()
    supervisor.close()


async def test_a_timeout_and_an_ended_child_refuse_a_command_as_not_answered() -> None:
    async with line() as (supervisor, child, _):
        with pytest.raises(CommandRefused, match="did not answer within") as late:
            await supervisor.ask("sleep", seconds=0.01)
        assert not late.value.answered
        waiting = asyncio.create_task(supervisor.ask("sleep", seconds=3600), name="ask")
        await asyncio.sleep(0)
        await child.end()
        with pytest.raises(CommandRefused, match=r"^it has ended$") as gone:
            await waiting
        assert not gone.value.answered and not supervisor.is_open
        with pytest.raises(CommandRefused, match=r"^it has ended$"):
            await supervisor.ask("do", seconds=HANGS_SECONDS)
        supervisor.tell("do")


async def test_commands_run_one_after_the_other_and_tell_waits_for_no_reply() -> None:
    async with line() as (supervisor, _, taken):
        supervisor.tell("first")
        supervisor.tell("refuse")
        await supervisor.ask("last", seconds=HANGS_SECONDS)
        assert [command.name for command in taken] == ["first", "refuse", "last"]


async def test_a_child_sends_heartbeats_before_it_accepts_commands() -> None:
    """The authority still loads for a while after it is ready, and must not count as hung."""
    ours, theirs = pair()
    supervisor, child = SupervisorChannel(ours), ChildChannel(theirs)
    supervisor.open()
    child.beat()
    await until(lambda: supervisor.beats == 1)
    supervisor.close()
    child.close()
    child.beat()  # does nothing after the close


async def test_heartbeats_are_counted_and_never_block_the_child() -> None:
    async with line() as (supervisor, child, _):
        child.beat()
        child.beat()
        await until(lambda: supervisor.beats == 2)
    ours, theirs = pair()
    deaf = ChildChannel(theirs)
    deaf.serve(lambda command: None)
    for _ in range(10_000):
        deaf.beat()  # returns although the other end does not read
    await deaf.end()
    ours.close()
