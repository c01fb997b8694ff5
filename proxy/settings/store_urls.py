"""Addresses of stores: ``sqlite``, or a URL of PostgreSQL as libpq writes it, with one host or several.

``postgresql://user:password@host:port,host:port/database?sslmode=verify-full&sslrootcert=/path``; with a unix socket
``postgresql://user@/database?host=/run/postgresql``. Source: PostgreSQL documentation, "Connection Strings" (34.1.1).

1. A message never repeats any part of an address, because each may be a piece of a password.
2. Readers of URLs differ where a password contains a delimiter, and one of them would show a piece of it as a host or a
   database. So delimiters in user, password and database must be percent-encoded, as in RFC 3986 §3.2.1.
3. The parameters are a fixed list: a misspelled ``sslmode`` must not turn encryption off. All that is accepted here,
   the dialect of the store accepts too, and means the same; a test compares them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import quote, unquote_to_bytes

from pydantic import AfterValidator

from proxy.settings.addresses import parse_host, parse_port, split_port

EMBEDDED: Final = "sqlite"
SCHEME: Final = "postgresql://"
PARAMETERS: Final = (
    "application_name",
    "connect_timeout",
    "host",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
)
"""The parameters of the query, in libpq's words."""
FILES: Final = ("sslcert", "sslkey", "sslrootcert")
"""The parameters that name a file."""
SYSTEM: Final = "system"
"""The value of ``sslrootcert`` for the certificate authorities of the operating system."""
SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
VERIFIED: Final = ("verify-ca", "verify-full")
"""The modes in which the server must show a certificate of a known authority."""
_ENCRYPTED: Final = ("require", *VERIFIED)
_WRITABLE: Final = ("read-write", "primary")
DEFAULT_PORT: Final = 5432

_PRINTABLE: Final = re.compile(r"[!-~]+")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ENCODE: Final = "in a user, password or database the characters : / ? # [ ] @ % are percent-encoded"
_NAMES: Final = f"{', '.join(PARAMETERS[:-1])} and {PARAMETERS[-1]}"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class PostgresqlUrl:
    """The parts of a URL, decoded. It has no representation, because it holds a password."""

    user: str
    """Empty: the name of the system's user."""
    password: str
    """Empty: none in the URL."""
    hosts: tuple[tuple[str, int], ...]
    """Host and port of each server, in order; empty for a unix socket."""
    database: str
    parameters: Mapping[str, str]

    @property
    def is_local(self) -> bool:
        """Whether no connection leaves this host."""
        return all(host in ("localhost", "::1") or host.startswith("127.") for host, _ in self.hosts)

    @classmethod
    def parse(cls, url: str) -> "PostgresqlUrl":
        """Parse a ``postgresql://`` URL. Raises ValueError with one sentence, which repeats nothing of the URL."""
        if not url.startswith(SCHEME):
            raise ValueError("must be sqlite or postgresql://user@host/database")
        if not _PRINTABLE.fullmatch(url) or _BAD_ESCAPE.search(url):
            raise ValueError("must consist of visible ASCII characters; all others, and %, are percent-encoded")
        authority, _, rest = url.removeprefix(SCHEME).partition("/")
        path, question, query = rest.partition("?")
        credentials, at, hosts = authority.rpartition("@")
        user, _, password = credentials.partition(":")
        for part in (user, password, path):
            if re.search(r"[:/?#\[\]@]", part):
                raise ValueError(f"is not a URL: {_ENCODE}")
        if "#" in url or "?" in authority:
            raise ValueError(f"is not a URL: {_ENCODE}")
        if at and not user:
            raise ValueError("has no user before the @; write postgresql://user@host/database")
        if not path:
            raise ValueError("names no database; write postgresql://user@host/database")
        parameters = _parameters(query) if question else {}
        return cls(
            user=_decoded(user),
            password=_decoded(password),
            hosts=_hosts(hosts, parameters),
            database=_decoded(path),
            parameters=parameters,
        )


def _decoded(text: str) -> str:
    try:
        decoded = unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("contains percent-encoded bytes that are not UTF-8") from None
    if "\0" in decoded:
        raise ValueError("must not contain a NUL byte (%00)")
    return decoded


def _hosts(text: str, parameters: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    if not text:
        if "host" not in parameters:
            raise ValueError("names no host; write postgresql://user@host/database")
        return ()
    if "host" in parameters:
        raise ValueError("names a host before the database and another in its parameter host; keep one of the two")
    hosts = []
    for each in text.split(","):
        host, port = split_port(each)
        hosts.append((parse_host(host), DEFAULT_PORT if port is None else parse_port(port, lowest=1)))
    if len(set(hosts)) != len(hosts):
        raise ValueError("names a host twice")
    return tuple(hosts)


def _parameters(query: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for each in query.split("&"):
        name, _, value = each.partition("=")
        if name == "password":
            raise ValueError("must not have its password in the query; write it before the @, or set store_password")
        if name not in PARAMETERS:
            raise ValueError(f"has an unknown parameter; known are {_NAMES}")
        if name in parameters:
            raise ValueError(f"has the parameter {name} twice")
        if "+" in value:
            raise ValueError(f"has a + in its parameter {name}; write %2B, because some programs read + as a space")
        parameters[name] = decoded = _decoded(value)
        if not decoded:
            raise ValueError(f"has no value for its parameter {name}")
    _check_numbers(parameters)
    _check_tls(parameters)
    return parameters


def _check_numbers(parameters: Mapping[str, str]) -> None:
    if parameters.get("target_session_attrs", _WRITABLE[0]) not in _WRITABLE:
        raise ValueError(f"its parameter target_session_attrs must be {' or '.join(_WRITABLE)}: a standby is behind")
    seconds = parameters.get("connect_timeout", "1")
    if not (seconds.isascii() and seconds.isdigit() and 1 <= int(seconds[:9]) <= 60):
        raise ValueError("its parameter connect_timeout must be a number of seconds from 1 to 60")
    if not parameters.get("host", "/").startswith("/"):
        raise ValueError("its parameter host must be an absolute path, the directory of a unix socket")
    if "port" in parameters:
        if "host" not in parameters:
            raise ValueError("has its port in the parameter port; write it behind the host")
        parse_port(parameters["port"], lowest=1)


def _check_tls(parameters: Mapping[str, str]) -> None:
    mode, root = parameters.get("sslmode", ""), parameters.get("sslrootcert")
    if mode and mode not in SSL_MODES:
        raise ValueError(f"its parameter sslmode must be {', '.join(SSL_MODES[:-1])} or {SSL_MODES[-1]}")
    for name in FILES:
        path = parameters.get(name, "/")
        if not path.startswith("/") and (name, path) != ("sslrootcert", SYSTEM):
            raise ValueError(f"its parameter {name} must be an absolute path")
    if ("sslcert" in parameters) != ("sslkey" in parameters):
        raise ValueError("needs both or none of its parameters sslcert and sslkey")
    if mode in VERIFIED and root is None:
        raise ValueError(f"needs sslrootcert with sslmode={mode}: a file, or sslrootcert={SYSTEM} for the system's")
    if root == SYSTEM and mode != "verify-full":
        raise ValueError(f"needs sslmode=verify-full with sslrootcert={SYSTEM}: anybody gets such a certificate")
    if mode not in _ENCRYPTED and any(name in parameters for name in FILES):
        raise ValueError("has certificates, and needs sslmode=require, verify-ca or verify-full")


def is_shared(store: str) -> bool:
    """Whether several nodes can use the store at the address ``store``, which is valid."""
    return store != EMBEDDED


def has_password(url: str) -> bool:
    """Whether a valid address of a store contains a password."""
    return is_shared(url) and bool(PostgresqlUrl.parse(url).password)


def with_password(url: str, password: str) -> str:
    """A valid address of a store with this password, in place of its own."""
    if not is_shared(url):
        return url
    scheme, authority, rest = _split(url)
    credentials, _, hosts = authority.rpartition("@")
    return f"{scheme}{credentials.partition(':')[0]}:{quote(password, safe='')}@{hosts}{rest}"


def without_password(url: str) -> str:
    """A store's address for display: a password is replaced by ``***``. Takes any text."""
    scheme, authority, rest = _split(url)
    try:
        PostgresqlUrl.parse(url)
    except ValueError:
        # Its password may be anywhere before the last "@".
        authority, rest = authority + rest, ""
    user, at, hosts = authority.rpartition("@")
    name, colon, _ = user.partition(":")
    return f"{scheme}{name}:***@{hosts}{rest}" if scheme and at and colon else url


def _split(url: str) -> tuple[str, str, str]:
    """Scheme with its slashes, authority and the rest."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return scheme + separator if separator else "", authority, slash + path


def _store(text: str) -> str:
    if text != EMBEDDED:
        PostgresqlUrl.parse(text)
    return text


def _session(text: str) -> str:
    if not text.startswith(SCHEME):
        raise ValueError("must be postgresql://user@host/database")
    PostgresqlUrl.parse(text)
    return text


StoreUrl = Annotated[str, AfterValidator(_store)]
SessionUrl = Annotated[str, AfterValidator(_session)]
