"""Addresses of PostgreSQL stores, as libpq writes them.

``postgresql://USER:PASSWORD@HOST:PORT,HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE``, or, for a Unix socket,
``postgresql:///DATABASE?host=/run/postgresql``.

Rules:

1. A parameter that is not implemented is refused, never ignored: an ignored ``sslmode`` would be a hole.
2. No error and no ``repr`` contains the password, or repeats any part of the address.
3. Only a server that can be written to is used (``target_session_attrs=read-write``): a standby is behind.
"""

from __future__ import annotations

import os
import pwd
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from proxy.core.errors import StoreUnavailable

SCHEMES: Final = ("postgresql", "postgres")
PORT: Final = 5432
CONNECT_SECONDS: Final = 5.0
"""How long one host may take to answer (``connect_timeout``)."""
SYSTEM: Final = "system"
"""The value of ``sslrootcert`` that stands for the certificate authorities of the operating system."""

_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_VERIFYING: Final = ("verify-ca", "verify-full")
_WRITABLE: Final = ("read-write", "primary")
_FILES: Final = ("sslrootcert", "sslcert", "sslkey")
_KNOWN: Final = (
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    *_FILES,
    "target_session_attrs",
    "connect_timeout",
    "application_name",
)
_OPTIONAL: Final = ("prefer", "allow")
"""The modes in which the driver itself tries both, with and without TLS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresqlAddress:
    """A database on one of several servers. A host that begins with ``/`` is the directory of a Unix socket.

    ``connect_timeout`` (seconds) is that of each host.
    """

    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str | None = field(repr=False)
    database: str
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    connect_timeout: float = CONNECT_SECONDS
    application_name: str = "patgate"

    @property
    def location(self) -> str:
        """The address as errors show it: without user and password."""
        return f"postgresql://{','.join(_place(host, port) for host, port in self.hosts)}/{self.database}"

    def tls(self, host: str) -> ssl.SSLContext | str | bool:
        """What the driver takes as ``ssl`` for ``host``. Raises StoreUnavailable for files that cannot be used.

        It reads files, so call it outside of the event loop.
        """
        if host.startswith("/") or self.sslmode == "disable":
            return False
        if self.sslmode in _OPTIONAL:
            return self.sslmode
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.sslmode == "verify-full"
        if self.sslrootcert == SYSTEM:
            context.load_default_certs()
        elif self.sslrootcert is not None:
            _loaded("sslrootcert", partial(context.load_verify_locations, cafile=self.sslrootcert))
        else:
            context.verify_mode = ssl.CERT_NONE
        if self.sslcert is not None:
            # Without a password function OpenSSL would ask for one on the terminal.
            load = partial(context.load_cert_chain, self.sslcert, self.sslkey, password=lambda: "")
            _loaded("sslcert and sslkey", load)
        return context


def parse(url: str, setting: str = "store") -> PostgresqlAddress:
    """The address in ``url``, the value of ``setting``. Raises StoreUnavailable that says what is wrong with it."""
    try:
        return _parsed(url)
    except _Wrong as error:
        raise StoreUnavailable(f"the address in {setting} {error}") from error


class _Wrong(Exception):
    """What is wrong with an address, as the rest of a sentence."""


def _parsed(url: str) -> PostgresqlAddress:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _Wrong("is not a URL") from error
    if parts.scheme not in SCHEMES:
        raise _Wrong("must begin with postgresql://")
    if parts.fragment:
        raise _Wrong("has a #, which must be written as %23")
    given = _parameters(parts.query)
    credentials, _, place = parts.netloc.rpartition("@")
    user, colon, password = credentials.partition(":")
    path = parts.path.removeprefix("/")
    twice = {"host": place, "port": place, "user": user, "password": colon, "dbname": path}
    if any(said and name in given for name, said in twice.items()):
        raise _Wrong("names a host, a port, the user, the password or the database twice")
    database = given.get("dbname") or unquote(path)
    if not database:
        raise _Wrong("names no database")
    address = PostgresqlAddress(
        hosts=_hosts(place, given),
        user=given.get("user") or unquote(user) or pwd.getpwuid(os.geteuid()).pw_name,
        password=given.get("password", unquote(password) if colon else None),
        database=database,
        connect_timeout=_seconds(given),
        application_name=given.get("application_name", "patgate"),
    )
    if any("\0" in text for text in (address.user, address.password or "", address.database)):
        raise _Wrong("contains a NUL character")
    _require_writable(given)
    return _secured(address, given)


def _parameters(query: str) -> Mapping[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError as error:
        raise _Wrong("has parameters that are not NAME=VALUE, joined by &") from error
    if any(name not in _KNOWN for name, _ in pairs):
        raise _Wrong(f"has a parameter that is not supported; these are: {', '.join(_KNOWN)}")
    if len({name for name, _ in pairs}) < len(pairs):
        raise _Wrong("has a parameter twice")
    return {name: value for name, value in pairs if value}


def _hosts(place: str, given: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    if place:
        return tuple((_host(host), _port(port)) for host, port in map(_split, place.split(",")))
    if "host" not in given:
        raise _Wrong("names no host; for a Unix socket add ?host=DIRECTORY")
    hosts, ports = given["host"].split(","), given.get("port", "").split(",")
    if len(ports) not in (1, len(hosts)):
        raise _Wrong("has another number of ports than of hosts")
    if len(ports) == 1:
        ports *= len(hosts)
    return tuple((_host(host), _port(port)) for host, port in zip(hosts, ports, strict=True))


def _split(text: str) -> tuple[str, str]:
    """Host and port of ``HOST:PORT``, where an IPv6 address is in brackets."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _Wrong("has an IPv6 address without its closing bracket")
        return host, rest[1:]
    host, _, port = text.partition(":")
    return unquote(host), port


def _host(host: str) -> str:
    if not host or "\0" in host:
        raise _Wrong("has an empty host between commas")
    return host


def _port(text: str) -> int:
    if not text:
        return PORT
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise _Wrong("has a port that is not a number from 1 to 65535")
    return int(text)


def _seconds(given: Mapping[str, str]) -> float:
    text = given.get("connect_timeout")
    if text is None:
        return CONNECT_SECONDS
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 60):
        raise _Wrong("has a connect_timeout that is not a number of seconds from 1 to 60")
    return float(text)


def _require_writable(given: Mapping[str, str]) -> None:
    if given.get("target_session_attrs", _WRITABLE[0]) not in _WRITABLE:
        raise _Wrong(f"has a target_session_attrs that is not {' or '.join(_WRITABLE)}: a standby is behind")


def _secured(address: PostgresqlAddress, given: Mapping[str, str]) -> PostgresqlAddress:
    mode = given.get("sslmode", "prefer")
    if mode not in _MODES:
        raise _Wrong(f"has an sslmode that is not one of: {', '.join(_MODES)}")
    files = {name: given.get(name) for name in _FILES}
    if mode in _VERIFYING and files["sslrootcert"] is None:
        raise _Wrong(f"has sslmode={mode} and needs sslrootcert=FILE, or sslrootcert={SYSTEM} for the system's")
    if files["sslrootcert"] == SYSTEM and mode != "verify-full":
        # Anybody gets a certificate of such an authority, for a name of their own.
        raise _Wrong(f"has sslrootcert={SYSTEM} and needs sslmode=verify-full")
    if mode not in (*_VERIFYING, "require") and any(files.values()):
        raise _Wrong("has certificates and needs sslmode=require, verify-ca or verify-full")
    if files["sslkey"] is not None and files["sslcert"] is None:
        raise _Wrong("has sslkey and needs sslcert")
    return replace(
        address, sslmode=mode, sslrootcert=files["sslrootcert"], sslcert=files["sslcert"], sslkey=files["sslkey"]
    )


def _loaded(names: str, load: Callable[[], None]) -> None:
    try:
        load()
    except OSError as error:  # ``ssl.SSLError`` is one
        missing = " because a file does not exist" if isinstance(error, FileNotFoundError) else ""
        raise StoreUnavailable(f"the store's files in {names} cannot be used{missing}") from error


def _place(host: str, port: int) -> str:
    if host.startswith("/"):
        return str(Path(host) / f".s.PGSQL.{port}")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
