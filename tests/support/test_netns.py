"""The network namespaces of tests: what is cut does not arrive, and arrives again when it is mended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.netns import Host, Namespace, Network
from tests.support.process import alive, wait_until

PORT = 5000
ECHO = (
    "import socket, sys\n"
    "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "s.bind((sys.argv[1], int(sys.argv[2])))\n"
    "print('bound', flush=True)\n"
    "seen = open(sys.argv[3], 'ab', buffering=0)\n"
    "while True:\n"
    "    data, peer = s.recvfrom(100)\n"
    "    seen.write(data)\n"
    "    try:\n"
    "        s.sendto(data, peer)\n"
    "    except OSError:\n"
    "        pass\n"
)
ASK = (
    "import socket, sys\n"
    "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "s.settimeout(0.25)\n"
    "try:\n"
    "    s.connect((sys.argv[1], int(sys.argv[2])))\n"
    "    s.send(sys.argv[3].encode())\n"
    "    print(s.recv(100).decode())\n"
    "except TimeoutError:\n"
    "    print('silence')\n"
    "except OSError:\n"
    "    print('error')\n"
)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@pytest.fixture(scope="module")
def seen(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of everything that arrived at a server in the hub, which sends it back."""
    path = tmp_path_factory.mktemp("netns") / "seen"
    server = subprocess.Popen(
        [*network.hub.prefix, sys.executable, "-c", ECHO, network.gateway, str(PORT), str(path)],
        stdout=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline() == b"bound\n"
    yield path
    server.kill()
    server.wait()
    server.stdout.close()


def ask(network: Network, host: Host, word: str) -> str:
    return host.namespace.run(sys.executable, "-S", "-c", ASK, network.gateway, str(PORT), word).strip()


def answered(network: Network, host: Host) -> None:
    wait_until(lambda: ask(network, host, "again") == "again", "an answer over the link")


@pytest.mark.parametrize(
    ("fail", "outcomes", "arrives"),
    [
        (Host.cut, {"silence"}, False),
        (Host.unplug, {"error"}, False),
        (Host.mute, {"silence"}, False),
        (Host.deafen, {"silence"}, True),
    ],
    ids=["cut", "unplug", "mute", "deafen"],
)
def test_a_link_fails_in_its_way_and_is_mended(
    fail: Callable[[Host], None], outcomes: set[str], arrives: bool, network: Network, seen: Path
) -> None:
    host, other = network.add(), network.add()
    answered(network, host)
    word = f"<{fail.__name__}>"
    fail(host)
    assert ask(network, host, word) in outcomes
    answered(network, other)
    assert (word.encode() in seen.read_bytes()) == arrives
    host.mend()
    answered(network, host)


def test_a_namespace_has_no_link_of_ours_and_ends_with_its_holder() -> None:
    with Namespace() as namespace:
        assert [line.split(":")[1].strip() for line in namespace.run("ip", "-o", "link").splitlines()] == ["lo"]
        assert namespace.run("readlink", "/proc/self/ns/net") != os.readlink("/proc/self/ns/net")
        pid = namespace.pid
    assert not alive(pid)
