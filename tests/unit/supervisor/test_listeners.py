"""Listening sockets: one address for several slots, and errors with one sentence."""

import os
import socket
import stat
from pathlib import Path

import pytest

from proxy.supervisor import listeners
from proxy.supervisor.errors import ListenerRefused
from tests.support.process import free_port


def test_all_slots_of_a_shared_listener_have_one_port_that_the_system_chose() -> None:
    with listeners.listen("proxy", "127.0.0.1", 0, slots=3, shared=True) as listener:
        ports = {sock.getsockname()[1] for sock in listener.sockets}
        assert len(listener.sockets) == 3
        assert ports == {listener.port}
        assert listener.address == f"127.0.0.1:{listener.port}"


def test_a_taken_port_is_reported_with_the_listener_and_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenerRefused) as refused:
            listeners.listen("forward_auth", "127.0.0.1", port, slots=2, shared=True)
    expected = f"The forward_auth listener cannot use 127.0.0.1:{port}: another process is listening there."
    assert str(refused.value) == expected


def test_a_port_that_another_gateway_shares_counts_as_taken() -> None:
    with (
        listeners.listen("proxy", "127.0.0.1", 0, slots=2, shared=True) as other,
        pytest.raises(ListenerRefused, match="another process is listening there"),
    ):
        listeners.listen("proxy", "127.0.0.1", other.port, slots=2, shared=True)


def test_an_address_of_another_host_is_reported() -> None:
    with pytest.raises(ListenerRefused, match=r"control listener cannot use 192\.0\.2\.1:0: this host does not have"):
        listeners.listen("control", "192.0.2.1", 0)


def test_an_unknown_host_name_is_reported() -> None:
    with pytest.raises(ListenerRefused, match="the host is not known here"):
        listeners.listen("control", "no-such-host.invalid", 0)


def test_queued_connections_of_a_slot_are_served_by_the_next_process() -> None:
    with (
        listeners.listen("proxy", "127.0.0.1", 0, slots=1, shared=True) as listener,
        socket.create_connection(("127.0.0.1", listener.port)) as client,
    ):
        client.sendall(b"waiting")
        with socket.socket(fileno=os.dup(listener.fd())) as later:
            later.setblocking(True)
            accepted, _ = later.accept()
            with accepted:
                assert accepted.recv(16) == b"waiting"


def test_a_port_is_free_until_something_listens_on_it() -> None:
    port = free_port()  # one that the system gives to nobody else meanwhile
    with listeners.listen("proxy", "127.0.0.1", port):
        assert not listeners.free("127.0.0.1", port)
    assert listeners.free("127.0.0.1", port)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_unix_socket_has_its_mode_and_one_queue_for_all_slots(tmp_path: Path) -> None:
    path = tmp_path / "auth.sock"
    with listeners.listen_unix("forward_auth", str(path), 0o660) as listener:
        assert (mode(path), listener.address, listener.port) == (0o660, f"unix:{path}", 0)
        assert listener.with_slots(4) is listener
        assert listener.fds(0, 4) == listener.fds(3, 4) == (listener.fd(),)
        listener.set_mode(0o600)
        assert mode(path) == 0o600
        listener.close(kept=set(listener.sockets))
        assert path.exists()
    assert not path.exists()


def test_the_file_of_a_dead_process_is_replaced_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "auth.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with (
        listeners.listen_unix("forward_auth", str(path), 0o600),
        pytest.raises(ListenerRefused, match="another process is listening there"),
    ):
        listeners.listen_unix("forward_auth", str(path), 0o600)


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "auth.sock"
    path.write_text("precious")
    with pytest.raises(ListenerRefused, match="a file that is no socket is in its place"):
        listeners.listen_unix("forward_auth", str(path), 0o600)
    assert path.read_text() == "precious"
    with pytest.raises(ListenerRefused, match="no such file or directory"):
        listeners.listen_unix("forward_auth", str(tmp_path / "none" / "auth.sock"), 0o600)


def test_the_file_of_another_process_in_the_place_of_a_unix_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "auth.sock"
    with listeners.listen_unix("forward_auth", str(path), 0o600) as listener, socket.socket(socket.AF_UNIX) as other:
        path.unlink()
        other.bind(str(path))
        listener.close()
        assert path.exists()
