"""What is probed: the address that users reach, a path, a token, and what the configuration tells."""

import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from proxy.cli.doctor.client import Address, Response, send
from proxy.core.identity import PRESETS

PRESET_NAMES: Final = tuple(dict.fromkeys(name for preset in PRESETS.values() for _, name in preset.headers))
"""The identity headers of all presets."""
MARK: Final = "doctor-spoofed"
"""The value of every forged header, by which it is recognised when it arrives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """The deployment under test. ``path`` needs a token; ``echo`` says that ``patgate whoami`` answers there.

    ``path_given``: the operator named the path. ``brand`` begins a mistyped token; ``identity_names`` are the identity
    headers; ``open_paths`` are paths that may need no token. ``backends`` are servers to probe around patgate;
    ``forward_auth`` is the forward-auth listener, if it should refuse this machine.
    """

    front: Address
    path: str
    path_given: bool
    token: str | None = field(repr=False)
    echo: bool
    brand: str = "patgate"
    identity_names: tuple[str, ...] = PRESET_NAMES
    open_paths: tuple[str, ...] = ("/", "/healthz")
    backends: tuple[Address, ...] = ()
    forward_auth: Address | None = None

    def ask(self, *headers: tuple[str, str], target: str | None = None) -> Response:
        """The answer to a request without a token. Raises NoAnswer."""
        return send(self.front, self.path if target is None else target, headers)

    def ask_with_token(self, *headers: tuple[str, str], target: str | None = None) -> Response:
        """The answer to a request with the token. Raises NoAnswer."""
        return self.ask(("Authorization", f"Bearer {self.token}"), *headers, target=target)


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrived:
    """A request as it arrived at ``patgate whoami``."""

    path: str
    headers: tuple[tuple[str, str], ...]

    def named(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """The headers with one of these names, in any spelling that a backend may map to the same variable."""
        wanted = {spelled(name) for name in names}
        return [(name, value) for name, value in self.headers if spelled(name) in wanted]


def spelled(name: str) -> str:
    """A header's name in the spelling in which aliases are equal."""
    return name.lower().replace("_", "-").replace(".", "-")


def arrived(response: Response) -> Arrived | None:
    """What arrived, if ``patgate whoami`` answered; else None."""
    document = response.document
    path, headers = document.get("path"), document.get("headers")
    if not response.success or not isinstance(path, str) or not isinstance(headers, list):
        return None
    pairs = [each for each in headers if isinstance(each, list) and len(each) == 2]
    return Arrived(path=path, headers=tuple((str(name), str(value)) for name, value in pairs))


def is_loopback(host: str) -> bool:
    """Whether every address of this host is a loopback address. Raises OSError for an unknown name."""
    found = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    return all(ip_address(str(each).partition("%")[0]).is_loopback for each in found)


def outward_address() -> str | None:
    """This machine's address on its way to other networks; None if it has none. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # An address of documentation (RFC 5737): connecting a datagram socket only chooses a route.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        found = str(probe.getsockname()[0])
    return None if ip_address(found).is_loopback else found
