"""Address types of the configuration: listening addresses, upstream servers, trusted networks, URLs.

``str(parse(text))`` of a ``Bind`` or ``UpstreamServer`` is its canonical text, which settings use in JSON. Parsers
raise ``ValueError`` with one sentence. A message never repeats a server's address, which may contain a password.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, PlainSerializer, PlainValidator, WithJsonSchema

from proxy.core import networks
from proxy.core.networks import Network, NetworkSyntaxError
from proxy.settings.values import quoted

_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}$)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
)
_DIGITS_AND_DOTS: Final = re.compile(r"[0-9.]+")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_PRINTABLE: Final = re.compile(r"[!-~]+")
_TARGET: Final = re.compile(r"/[!-\"$-~]{0,1023}")
_MODE: Final = re.compile(r"06[06]0")
_PATH_LIMIT: Final = 107
"""Maximum bytes of a unix socket's path (unix(7): ``sun_path`` holds 108 with the final NUL)."""
_PUBLIC_IPV6: Final = IPv6Network("2000::/3")
_MAPPED_IPV4: Final = IPv6Network("::ffff:0:0/96")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bind:
    """One address to listen on: ``127.0.0.1:8080``, ``[::]:8080``, ``localhost:8080``. Port 0: the system chooses.

    For some listeners it may be ``unix:/run/patgate/auth.sock``.
    """

    host: str = ""
    """An IP address without brackets, or a host name; empty for a unix socket."""
    port: int = 0
    path: str = ""
    """The absolute path of a unix socket; empty for all others."""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "Bind":
        """Parse ``host:port``; raises ValueError."""
        host, colon, port = text.rpartition(":")
        if not colon or not host:
            raise ValueError(f"{quoted(text)} is not an address; write host:port, such as 127.0.0.1:8080 or [::]:8080")
        return cls(host=parse_host(host), port=parse_port(port, lowest=0))

    @classmethod
    def parse_local(cls, text: str) -> "Bind":
        """Parse ``host:port`` or ``unix:/path``; raises ValueError."""
        return cls(path=_socket_path(text)) if text.startswith("unix:") else cls.parse(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class UpstreamServer:
    """One server of an upstream: ``http://host:port``, ``https://host:port`` or ``unix:/path``."""

    scheme: str
    """``http``, ``https`` or ``unix``."""
    host: str = ""
    """An IP address without brackets, or a host name; empty for ``unix``."""
    port: int = 0
    path: str = ""
    """The socket's absolute path, for ``unix`` only."""

    @property
    def named(self) -> bool:
        """Whether the host is a name, which must be resolved."""
        return self.scheme != "unix" and ":" not in self.host and not _DIGITS_AND_DOTS.fullmatch(self.host)

    @property
    def authority(self) -> str:
        """The value for a ``Host`` field: without the scheme's default port; ``localhost`` for ``unix``."""
        if self.scheme == "unix":
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.scheme == "unix" else f"{self.scheme}://{self.authority}"

    @classmethod
    def parse(cls, text: str) -> "UpstreamServer":
        """Parse a URL or ``unix:/path``; raises ValueError."""
        if not _PRINTABLE.fullmatch(text):
            raise ValueError("must be an address of plain characters without spaces, such as http://127.0.0.1:3000")
        if text.startswith("unix:"):
            return cls(scheme="unix", path=_socket_path(text))
        try:
            parts = urlsplit(text)
        except ValueError:
            raise ValueError("is not an address; write http://host:port") from None
        if "?" in text:
            raise ValueError("must not have a query; the backend gets the client's query unchanged")
        if "#" in text:
            raise ValueError("must not have a fragment")
        return cls._from_url(parts)

    @classmethod
    def _from_url(cls, parts: SplitResult) -> "UpstreamServer":
        if parts.scheme not in _DEFAULT_PORTS or not parts.netloc:
            raise ValueError("must begin with http://, https:// or unix:, such as http://127.0.0.1:3000")
        if "@" in parts.netloc:
            raise ValueError(
                "must not contain a user name or password; set_headers of the upstream gives the backend a credential"
            )
        if parts.path not in ("", "/"):
            raise ValueError("must not have a path; the backend gets the path that was authorised, byte for byte")
        host, port = split_port(parts.netloc)
        return cls(
            scheme=parts.scheme,
            host=parse_host(host),
            port=_DEFAULT_PORTS[parts.scheme] if port is None else parse_port(port, lowest=1),
        )


def _socket_path(text: str) -> str:
    """The absolute path in ``unix:/path``."""
    path = text.removeprefix("unix:")
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path.startswith("/") or path.startswith("//"):
        raise ValueError("a unix socket is written with its absolute path, such as unix:/run/app.sock")
    return path


def split_port(netloc: str) -> tuple[str, str | None]:
    """Host and port of ``host``, ``host:port``, ``[::1]`` or ``[::1]:port``, both unchecked; None without a port."""
    if netloc.endswith("]") or ":" not in netloc:
        return netloc, None
    host, _, port = netloc.rpartition(":")
    return host, port


def parse_port(text: str, *, lowest: int) -> int:
    """A port, at least ``lowest``. Raises ValueError."""
    if not _PORT.fullmatch(text) or not lowest <= int(text) <= 65535:
        raise ValueError(f"the port must be a number from {lowest} to 65535")
    return int(text)


def parse_host(text: str) -> str:
    """The host of an address in lower case, without brackets. Raises ValueError."""
    try:
        if text.startswith("[") and text.endswith("]"):
            return str(ipaddress.IPv6Address(text[1:-1]))
        if _DIGITS_AND_DOTS.fullmatch(text):
            return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError("the host is not an IP address") from None
    if ":" in text:
        raise ValueError("an IPv6 address is written in brackets, such as [::1]:8080")
    if not _HOST_NAME.fullmatch(text):
        raise ValueError("the host is neither an IP address nor a host name")
    return text.lower()


def _name(text: str) -> str:
    host = parse_host(text)
    if ":" in host or _DIGITS_AND_DOTS.fullmatch(host):
        raise ValueError("must be a host name, such as app.internal")
    return host


def _authority(text: str) -> str:
    """A value of a ``Host`` field: ``app.internal``, ``app.internal:8080``, ``[::1]:8080``."""
    host, port = split_port(text)
    host = parse_host(host)
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{parse_port(port, lowest=1)}"


def _target(text: str) -> str:
    if not _TARGET.fullmatch(text):
        raise ValueError("must be a path such as /healthz, of plain characters without spaces")
    return text


def parse_network(value: object) -> Network:
    """``10.0.0.0/8``, ``10.0.0.1`` or ``fd00::/8`` → network.

    An IPv4-mapped IPv6 network (RFC 4291 §2.5.5.2) is refused: peers have their IPv4 form, so it would never match.
    """
    if isinstance(value, (IPv4Network, IPv6Network)):
        return value
    if not isinstance(value, str):
        raise ValueError("must be a network such as 10.0.0.0/8 or fd00::/8")
    try:
        return networks.parse_network(value)
    except NetworkSyntaxError as error:
        raise ValueError(f"{quoted(value)} {error}") from None


def trusts_everyone(trusted: Iterable[Network]) -> str | None:
    """Why these networks together include too many peers, or None.

    Their sizes are added up: half of all IPv4, or of all public IPv6 addresses, is too much.
    """
    listed = list(trusted)
    four = ipaddress.collapse_addresses(n for n in listed if isinstance(n, IPv4Network))
    if sum(n.num_addresses for n in four) >= 2**31:
        return "trusts half or more of all IPv4 addresses, so anyone could forge the headers of a trusted peer"
    six = list(ipaddress.collapse_addresses(n for n in listed if isinstance(n, IPv6Network)))
    public = sum(min(n.num_addresses, _PUBLIC_IPV6.num_addresses) for n in six if n.overlaps(_PUBLIC_IPV6))
    if public >= _PUBLIC_IPV6.num_addresses // 2:
        return "trusts half or more of all public IPv6 addresses, so anyone could forge the headers of a trusted peer"
    if any(_MAPPED_IPV4.subnet_of(n) for n in six):
        return "trusts every IPv4 address in IPv6 form, so anyone could forge the headers of a trusted peer"
    return None


def collides(first: Bind, second: Bind) -> bool:
    """Whether two listeners need the same port. Port 0 never collides; IPv4 and IPv6 are separate sockets."""
    # A unix socket has port 0, and only one listener may have one.
    if first.port != second.port or first.port == 0:
        return False
    hosts = {first.host, second.host}
    if len(hosts) == 1:
        return True
    versions = {_version(host) for host in hosts}
    return bool(hosts & {"0.0.0.0", "::"}) and (len(versions) == 1 or None in versions)  # noqa: S104 - compared only


def _version(host: str) -> int | None:
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return None


def _bind(value: object) -> Bind:
    if isinstance(value, Bind):
        return value
    if not isinstance(value, str):
        raise ValueError("must be an address such as 127.0.0.1:8080 or [::]:8080")
    return Bind.parse(value)


def _local_bind(value: object) -> Bind:
    if isinstance(value, str) and value.startswith("unix:"):
        bind = Bind.parse_local(value)
        if not _PRINTABLE.fullmatch(bind.path) or len(bind.path) > _PATH_LIMIT or bind.path.endswith("/"):
            raise ValueError(f"the path of a unix socket has at most {_PATH_LIMIT} plain characters without spaces")
        return bind
    return _bind(value)


def _socket_mode(value: object) -> str:
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise ValueError('must be "0600" or "0660", in quotation marks: other users must not be able to connect')
    return value


def _server(value: object) -> UpstreamServer:
    if isinstance(value, UpstreamServer):
        return value
    if not isinstance(value, str):
        raise ValueError("must be an address such as http://127.0.0.1:3000 or unix:/run/app.sock")
    return UpstreamServer.parse(value)


def _webhook(text: str) -> str:
    try:
        parts = urlsplit(text)
        plain = text.isascii() and text.isprintable() and " " not in text and not parts.fragment
        good = plain and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.username
    except ValueError:
        good = False
    if not good:
        raise ValueError("must be a URL such as https://hooks.example.com/patgate, without user and fragment")
    return text


BindAddress = Annotated[
    Bind, PlainValidator(_bind), PlainSerializer(str, return_type=str), WithJsonSchema({"type": "string"})
]
LocalBindAddress = Annotated[
    Bind, PlainValidator(_local_bind), PlainSerializer(str, return_type=str), WithJsonSchema({"type": "string"})
]
SocketMode = Annotated[str, PlainValidator(_socket_mode), WithJsonSchema({"enum": ["0600", "0660"]})]
ServerAddress = Annotated[
    UpstreamServer, PlainValidator(_server), PlainSerializer(str, return_type=str), WithJsonSchema({"type": "string"})
]
TrustedNetwork = Annotated[
    Network, PlainValidator(parse_network), PlainSerializer(str, return_type=str), WithJsonSchema({"type": "string"})
]
HostName = Annotated[str, AfterValidator(_name)]
HostField = Annotated[str, AfterValidator(_authority)]
RequestTarget = Annotated[str, AfterValidator(_target)]
WebhookUrl = Annotated[str, AfterValidator(_webhook)]
