"""Socket activation and service manager notifications, without a service manager."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from proxy.settings.addresses import Bind
from proxy.supervisor import activation
from proxy.supervisor.errors import ListenerRefused
from proxy.supervisor.sd_notify import Notifier

BINDS = {"control": Bind(host="127.0.0.1", port=1), "proxy": Bind(host="127.0.0.1", port=2)}


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, []),
        ({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, []),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "2"}, [("", 3), ("", 4)]),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "proxy:x"}, [("proxy", 3), ("x", 4)]),
    ],
)
def test_passed_descriptors_start_at_3_and_have_their_names(
    environ: dict[str, str], found: list[tuple[str, int]]
) -> None:
    assert activation.passed(environ, 7) == found


@pytest.mark.parametrize("wrong", [{"LISTEN_FDS": "many"}, {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "one"}, {}])
def test_variables_that_contradict_themselves_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ListenerRefused, match="service manager passed sockets"):
        activation.passed({"LISTEN_PID": "7", **wrong}, 7)


def duplicate(sock: socket.socket) -> int:
    """A duplicate descriptor of a socket, as another process would pass it."""
    return os.dup(sock.fileno())


def test_a_socket_is_assigned_by_name_or_else_by_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as named, socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]
        binds = {**BINDS, "forward_auth": Bind(host="127.0.0.1", port=port)}
        found = activation.adopt([("proxy", duplicate(named)), ("patgate.socket", duplicate(plain))], binds)
        assert {name: each.port for name, each in found.items()} == {
            "proxy": named.getsockname()[1],
            "forward_auth": port,
        }
        assert found["proxy"].fds(0, 4) == found["proxy"].fds(3, 4), "all workers accept from the one queue"
        for each in found.values():
            each.close()


def test_a_unix_socket_is_assigned_only_to_a_listener_that_is_configured_with_one(tmp_path: Path) -> None:
    path = str(tmp_path / "auth.sock")
    binds = {**BINDS, "forward_auth": Bind(path=path)}
    with socket.socket(socket.AF_UNIX) as local, socket.create_server(("127.0.0.1", 0)) as plain:
        local.bind(path)
        local.listen()
        for name in ("forward_auth", "patgate.socket"):
            found = activation.adopt([(name, duplicate(local))], binds)
            assert (found["forward_auth"].address, found["forward_auth"].path) == (f"unix:{path}", "")
            found["forward_auth"].close()
            # It belongs to the service manager.
            assert os.path.exists(path)
        for sock, name in ((local, "proxy"), (plain, "forward_auth")):
            with pytest.raises(ListenerRefused, match="belongs to no listener"):
                activation.adopt([(name, duplicate(sock))], binds)


def test_a_second_socket_for_the_control_listener_is_refused() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(ListenerRefused, match="several sockets for the control listener"),
    ):
        activation.adopt([("control", duplicate(one)), ("control", duplicate(other))], BINDS)


def test_a_closed_descriptor_is_refused_in_one_sentence() -> None:
    with socket.socket() as gone:
        fd = gone.fileno()
    with pytest.raises(ListenerRefused, match=f"descriptor {fd}, which is no socket"):
        activation.adopt([("proxy", fd)], BINDS)


def test_a_descriptor_that_is_no_listening_stream_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket() as idle, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        for fd in (duplicate(idle), duplicate(datagram)):
            with pytest.raises(ListenerRefused, match="no listening stream socket"):
                activation.adopt([("proxy", fd)], BINDS)
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(ListenerRefused, match="no socket"):
        activation.adopt([("proxy", fd)], BINDS)
    os.close(fd)


def test_without_a_service_manager_notifications_do_nothing(tmp_path: Path) -> None:
    for address in (None, "", "relative", str(tmp_path / "nobody"), "@nobody-listens-here", "/" + "x" * 200):
        notifier = Notifier(address)
        notifier.ready("serving")
        notifier.alive()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_interval_is_half_of_its_period(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier.from_environment(environ, 7).watchdog_seconds == seconds
