"""Listening sockets: one address for several slots, and errors with one sentence."""

import os
import socket

import pytest

from proxy.supervisor import listeners
from proxy.supervisor.errors import ListenerRefused


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
    with listeners.listen("proxy", "127.0.0.1", 0) as listener:
        port = listener.port
        assert not listeners.free("127.0.0.1", port)
    assert listeners.free("127.0.0.1", port)
